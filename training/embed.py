"""Images to embeddings, by a checkpoint's encoder, as it serves. Needs no PyTorch."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.arrays import EmbeddingsF32, ImageU8, Ints
from app.checkpoint.bulk import BATCH, embed_all
from app.checkpoint.encoder import Encoder
from app.checkpoint.format import Checkpoint, RuntimeName
from app.errors import UsageError
from app.files import replacing
from app.progress import track
from training.data.dataset import decode_files, image_files


def open_encoder(checkpoint: Checkpoint, runtime: RuntimeName = "onnxruntime") -> Encoder:
    """The encoder, with all cores for one batch. Raises `UsageError` for a runtime that is not available here."""
    return Encoder(checkpoint, os.cpu_count() or 1, runtime)


def embed_images(
    encoder: Encoder, images_NHWC: ImageU8, index_N: Ints | None = None, *, progress: bool = True
) -> EmbeddingsF32:
    """Unit embeddings `[N, D]` of all decoded images, or of those at `index_N`."""
    index_N = np.arange(len(images_NHWC)) if index_N is None else index_N
    parts = [np.empty((0, encoder.embedding_dim), dtype=np.float32)]
    starts = range(0, len(index_N), BATCH)
    for start in track(starts, "embedding", "batches", enabled=progress):
        parts.append(encoder.embed(images_NHWC[index_N[start : start + BATCH]]))
    return np.concatenate(parts)


def embed_files(encoder: Encoder, files: Sequence[Path], *, progress: bool = True) -> tuple[list[Path], EmbeddingsF32]:
    """Paths of the files that are images, in order, and their embeddings `[N, D]`."""
    decoded = decode_files(files, encoder.preprocessing, progress=progress)
    items = [item for item in embed_all(encoder, decoded) if item.embedding_D is not None]
    embeddings_ND = np.empty((len(items), encoder.embedding_dim), dtype=np.float32)
    for row, item in enumerate(items):
        embeddings_ND[row] = item.embedding_D
    return [item.key for item in items], embeddings_ND


def write_embeddings(encoder: Encoder, root: Path, output: Path, *, progress: bool = True) -> tuple[int, int]:
    """Write `paths` and `embeddings` of every image below `root` to the .npz file `output`, under its name only when
    it is whole. Returns the numbers of images and of other files. Raises `UsageError` if `output` is a directory."""
    if output.is_dir():
        raise UsageError(f"{output} is a directory. Give the name of a file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as file:  # before the work, so that a place that can't be written to is refused early
        paths, embeddings_ND, skipped = embed_folder(encoder, root, progress=progress)
        np.savez(file, paths=np.array(paths, dtype=np.str_), embeddings=embeddings_ND)
    return len(paths), skipped


def embed_folder(encoder: Encoder, root: Path, *, progress: bool = True) -> tuple[list[str], EmbeddingsF32, int]:
    """Relative paths and embeddings `[N, D]` of every image below `root`, and the number of other files.

    Raises `UsageError` for a folder that can't be read.
    """
    files = image_files(root, hidden=True)
    paths, embeddings_ND = embed_files(encoder, files, progress=progress)
    return [path.relative_to(root).as_posix() for path in paths], embeddings_ND, len(files) - len(paths)
