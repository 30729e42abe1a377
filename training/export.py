"""Trained network to the files that serve: ONNX, safetensors, and the proof that both embed alike."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from app.checkpoint import ONNX, WEIGHTS, Runtime
from app.errors import TrainingFailed
from app.image import ImageU8
from app.matching import EmbeddingsF32
from training.network import CompactEncoder

# The largest difference in distance, between training's network and the exported one, that passes.
MAX_DRIFT = 1e-4
PARITY_BATCHES = (1, 8)


def weights_of(network: CompactEncoder) -> dict[str, Tensor]:
    """All that decides an embedding, by name. Batch counters of the norms do not."""
    return {
        name: tensor.detach().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def write_encoder(network: CompactEncoder, example_BHWC: ImageU8, directory: Path) -> None:
    """Write `encoder.safetensors` and `encoder.onnx`, whose only dynamic axis is the batch."""
    network.eval()
    (directory / WEIGHTS).write_bytes(save(weights_of(network)))
    example = torch.from_numpy(np.ascontiguousarray(example_BHWC[:2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter warns of its own internals, not of this network.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network,
            (example,),
            str(directory / ONNX),
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_shapes={"images_BHWC": {0: torch.export.Dim("N", min=1)}},
            external_data=False,
            verbose=False,
            dynamo=True,
        )


def embed(network: CompactEncoder, images_NHWC: ImageU8, batch: int = 256) -> EmbeddingsF32:
    """Unit embeddings `[N, D]` by the network itself."""
    network.eval()
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(np.ascontiguousarray(images_NHWC[start : start + batch]))).numpy()
            for start in range(0, len(images_NHWC), batch)
        ]
    return np.concatenate(parts)


def check_parity(network: CompactEncoder, images_NHWC: ImageU8, directory: Path) -> Runtime:
    """Compare distances of real pairs, network against ONNX Runtime, at batch 1 and 8.

    Raises `TrainingFailed` if any of them differs by more than `MAX_DRIFT`.
    """
    session = ort.InferenceSession((directory / ONNX).read_bytes(), providers=["CPUExecutionProvider"])
    wanted = _all_distances(embed(network, images_NHWC))
    drift = 0.0
    for batch in PARITY_BATCHES:
        parts = [
            session.run(None, {"pixels": np.ascontiguousarray(images_NHWC[start : start + batch])})[0]
            for start in range(0, len(images_NHWC), batch)
        ]
        drift = max(drift, float(np.abs(_all_distances(np.concatenate(parts)) - wanted).max()))
    if not drift <= MAX_DRIFT:
        raise TrainingFailed(
            f"The exported encoder's distances differ by up to {drift:.2e} from the trained one's; "
            f"{MAX_DRIFT:g} is allowed. The checkpoint was not written."
        )
    return Runtime(
        name="onnxruntime",
        version=ort.__version__,
        precision="float32",
        pairs=len(wanted),
        max_distance_drift=drift,
    )


def _all_distances(embeddings_ND: NDArray[Any]) -> NDArray[np.float64]:
    wide_ND = embeddings_ND.astype(np.float64)
    first, second = np.triu_indices(len(wide_ND), 1)
    distances: NDArray[np.float64] = np.linalg.norm(wide_ND[first] - wide_ND[second], axis=1)
    return distances
