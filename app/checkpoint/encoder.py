"""Pixels to embeddings. Knows nothing of requests or galleries."""

import numpy as np

from app.arrays import EmbeddingsF32, ImageU8
from app.checkpoint.format import Checkpoint, Runtime, RuntimeName
from app.checkpoint.matching import distances
from app.checkpoint.runtimes import open_session

# Pictures that show how far another runtime's distances differ: smooth and rough noise, always the same.
DRIFT_PICTURES = 16


class Encoder:
    """The loaded encoder: `embed`, `model_id`, `warm_up`. Safe to call from several threads.

    `threads` is the number of threads for one embedding, `streams` the number of embeddings at the same time. Raises
    `UsageError` where the runtime is not available.
    """

    def __init__(
        self, checkpoint: Checkpoint, threads: int = 1, runtime: RuntimeName = "onnxruntime", streams: int = 1
    ) -> None:
        self._session = open_session(checkpoint.onnx, runtime, threads=threads, streams=streams)
        self._checkpoint = checkpoint
        self.description = checkpoint.description
        self.model_id = checkpoint.description.model_id
        self.preprocessing = checkpoint.description.preprocessing
        self.embedding_dim = checkpoint.description.embedding_dim

    def embed(self, images_NHWC: ImageU8) -> EmbeddingsF32:
        """Unit float32 embeddings `[N, D]` of decoded uint8 pixels `[N, H, W, C]`."""
        return self._session.run(images_NHWC)

    def runtime(self) -> Runtime:
        """The runtime and how far its distances differ: from the checkpoint or, for another runtime, measured now."""
        session, known = self._session, self.description.runtime
        if session.name == known.name:
            return known
        pictures_NHWC = self._pictures()
        before, now = (
            np.stack([distances(one_D, embeddings_ND) for one_D in embeddings_ND])
            for embeddings_ND in (open_session(self._checkpoint.onnx).run(pictures_NHWC), session.run(pictures_NHWC))
        )
        return Runtime(
            name=session.name,
            version=session.version,
            precision=session.precision,
            pairs=DRIFT_PICTURES * (DRIFT_PICTURES - 1) // 2,
            max_distance_drift=float(np.abs(now - before).max()),
        )

    def warm_up(self) -> None:
        """Embed a grey image, so that the first request does not wait for the first allocation.

        Raises `RuntimeError` where the result is not a unit embedding of the size in the checkpoint.
        """
        size = self.preprocessing
        embeddings_ND = self.embed(np.full((1, size.height, size.width, size.channels), 128, dtype=np.uint8))
        norm = float(np.linalg.norm(embeddings_ND))
        if embeddings_ND.shape != (1, self.embedding_dim) or not abs(norm - 1) < 1e-3:
            raise RuntimeError(f"The encoder gave no unit embedding: shape {embeddings_ND.shape}, norm {norm}.")

    def _pictures(self) -> ImageU8:
        """Noise of several grain sizes `[16, H, W, C]`."""
        size, rng = self.preprocessing, np.random.default_rng(0)
        made = []
        for number in range(DRIFT_PICTURES):
            grain = 2 ** (1 + number % 4)
            across, down = -(-size.width // grain), -(-size.height // grain)
            coarse = rng.integers(0, 256, (down, across, size.channels), dtype=np.uint8)
            made.append(coarse.repeat(grain, 0).repeat(grain, 1)[: size.height, : size.width])
        return np.stack(made)
