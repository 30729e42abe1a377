"""Which images look alike: pictures as unit vectors, and the nearest others of each."""

import faiss
import numpy as np

from app.arrays import EmbeddingsF32, ImageU8, Ints
from app.progress import progress_bar

THUMBNAIL = 32
NEIGHBOURS = 16
# Up to this many images all are compared with all. Beyond, each is compared with those in the nearest cells, where
# copies lie as well.
EXACT = 50_000


def thumbnails(images_NHWC: ImageU8) -> EmbeddingsF32:
    """Small grey pictures as unit vectors `[N, D]` about their mean, so that a dot product is a correlation."""
    height, width = images_NHWC.shape[1:3]
    rows, columns = (np.unique(np.linspace(0, side, THUMBNAIL, endpoint=False).astype(int)) for side in (height, width))
    area = np.diff(rows, append=height)[:, None] * np.diff(columns, append=width)[None, :]
    small_ND = np.empty((len(images_NHWC), area.size), dtype=np.float32)
    for start in range(0, len(images_NHWC), 1024):
        grey = images_NHWC[start : start + 1024].astype(np.float32).mean(axis=3)
        summed = np.add.reduceat(np.add.reduceat(grey, rows, axis=1), columns, axis=2)
        small_ND[start : start + 1024] = (summed / area).reshape(len(grey), -1)
    small_ND -= small_ND.mean(axis=1, keepdims=True)
    small_ND /= np.maximum(np.linalg.norm(small_ND, axis=1, keepdims=True), 1e-6)
    return small_ND


def nearest_images(vectors_ND: EmbeddingsF32, *, progress: bool) -> tuple[EmbeddingsF32, Ints]:
    """Dot products `[N, K]` with the nearest images and their indices, each image itself among them."""
    count, size = vectors_ND.shape
    cells = round(4 * count**0.5)
    index = faiss.index_factory(size, "Flat" if count <= EXACT else f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    if count > EXACT:
        index.train(vectors_ND[:: max(1, count // (64 * cells))])
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", 8)
    index.add(vectors_ND)
    k = min(NEIGHBOURS, len(vectors_ND))
    parts = []
    with progress_bar("comparing", "images", count, enabled=progress) as bar:
        for start in range(0, len(vectors_ND), 1024):
            parts.append(index.search(vectors_ND[start : start + 1024], k))
            bar.update(len(parts[-1][0]))
    return np.concatenate([similar for similar, _ in parts]), np.concatenate([nearest for _, nearest in parts])


def nearest_of_own_identity(identity_N: Ints, vectors_ND: EmbeddingsF32) -> EmbeddingsF32:
    """Each image's distance to the nearest other image of its identity; infinite where there is none.

    >>> nearest_of_own_identity(np.array([0, 0, 1]), np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)).round(4)
    array([0.8944, 0.8944,    inf], dtype=float32)
    """
    nearest_N = np.full(len(identity_N), np.inf, dtype=np.float32)
    for identity in np.unique(identity_N):
        members = np.flatnonzero(identity_N == identity)
        for start in range(0, len(members) if len(members) > 1 else 0, 1024):
            rows = members[start : start + 1024]
            cosine = vectors_ND[rows] @ vectors_ND[members].T
            cosine[np.arange(len(rows)), start + np.arange(len(rows))] = -np.inf  # each with itself
            nearest_N[rows] = np.sqrt(np.maximum(2 - 2 * cosine.max(axis=1), 0))
    return nearest_N
