"""Pixels to embeddings, by ONNX Runtime. Knows nothing of requests or galleries."""

import numpy as np
import onnxruntime as ort

from app.checkpoint import Checkpoint
from app.image import ImageU8
from app.matching import EmbeddingsF32


class Encoder:
    """The loaded encoder: `embed`, `model_id`, `warm_up`. Safe to call from several threads."""

    def __init__(self, checkpoint: Checkpoint, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning thread is a core that no other request can use.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(checkpoint.onnx.read_bytes(), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.description = checkpoint.description
        self.model_id = checkpoint.description.model_id
        self.preprocessing = checkpoint.description.preprocessing
        self.embedding_dim = checkpoint.description.embedding_dim

    def embed(self, images_NHWC: ImageU8) -> EmbeddingsF32:
        """Unit float32 embeddings `[N, D]` of decoded uint8 pixels `[N, H, W, C]`."""
        (embeddings_ND,) = self._session.run(None, {self._input: images_NHWC})
        return np.asarray(embeddings_ND, dtype=np.float32)

    def warm_up(self) -> None:
        """Embed a grey image, so that the first caller does not pay for the first allocation.

        Raises `RuntimeError` if what comes out is no unit embedding of the promised size.
        """
        size = self.preprocessing
        embeddings_ND = self.embed(np.full((1, size.height, size.width, size.channels), 128, dtype=np.uint8))
        norm = float(np.linalg.norm(embeddings_ND))
        if embeddings_ND.shape != (1, self.embedding_dim) or not abs(norm - 1) < 1e-3:
            raise RuntimeError(f"The encoder gave {embeddings_ND.shape} of norm {norm}, no unit embedding.")
