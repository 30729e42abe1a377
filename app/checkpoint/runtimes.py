"""The runtimes that compute embeddings: ONNX Runtime, or OpenVINO where it is installed and asked for.

All run the same graph. `openvino-bf16` multiplies in bfloat16 on processors that can: it is faster, and distances
change by some thousandths (`benchmarks/runtimes.py` counts the verdicts that change).
"""

import sys
import threading
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from app.arrays import EmbeddingsF32, ImageU8
from app.checkpoint.format import RuntimeName
from app.errors import UsageError


class Session(Protocol):
    """A loaded graph. Safe to call from several threads."""

    name: str
    version: str
    precision: str

    def run(self, images_NHWC: ImageU8) -> EmbeddingsF32:
        """Unit float32 embeddings `[N, D]` of uint8 pixels `[N, H, W, C]`."""


class OnnxRuntime:
    """ONNX Runtime, with `threads` threads for one embedding."""

    name, version, precision = "onnxruntime", ort.__version__, "float32"

    def __init__(self, graph: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that spins keeps a core from other requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, images_NHWC: ImageU8) -> EmbeddingsF32:
        (embeddings_ND,) = self._session.run(None, {self._input: images_NHWC})
        return np.asarray(embeddings_ND, dtype=np.float32)


class OpenVino:
    """OpenVINO, with `streams` embeddings at the same time and `threads` threads for each."""

    name = "openvino"

    def __init__(self, graph: Path, threads: int, streams: int, precision: str) -> None:
        if find_spec("openvino") is None:
            raise UsageError("OpenVINO is not installed. Run make env EXTRAS=openvino, or use the runtime onnxruntime.")
        # The package reports every import to its maker. It works without the module that does so.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino as ov  # an extra, and half a second to import

        core = ov.Core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError("This processor does not multiply in bfloat16. Use the runtime openvino.")
        self.version, self.precision = version("openvino"), precision
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
        }
        try:
            self._model = core.compile_model(core.read_model(graph.read_bytes()), "CPU", options)
        except RuntimeError:  # such as bfloat16 where ONEDNN_MAX_CPU_ISA forbids its instructions
            raise UsageError(f"OpenVINO can't compute in {precision} here. Use the runtime onnxruntime.") from None
        self._of_thread = threading.local()

    def run(self, images_NHWC: ImageU8) -> EmbeddingsF32:
        request: Any = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._model.create_infer_request()
        return np.array(request.infer([images_NHWC])[0], dtype=np.float32)


def open_session(graph: Path, runtime: RuntimeName = "onnxruntime", *, threads: int = 1, streams: int = 1) -> Session:
    """Load an ONNX file. Raises `UsageError` where the runtime is not available."""
    if runtime == "onnxruntime":
        return OnnxRuntime(graph, threads)
    return OpenVino(graph, threads, streams, "bfloat16" if runtime == "openvino-bf16" else "float32")
