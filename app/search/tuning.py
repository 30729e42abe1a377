"""How an index of one collection is built: how many cells it has, and how many of them a search visits.

Both follow from the collection's own embeddings. Cells are learned from a sample of them; a search visits the smallest
number of cells that reaches the promised recall.
"""

import math
from collections.abc import Iterable

import faiss
import numpy as np

from app.arrays import EmbeddingsF32, Ints
from app.search.vectors import Approximate

# Embeddings that each cell's centre is learned from, and rounds of learning.
POINTS_PER_CELL, ROUNDS = 40, 8
# Recall among the neighbours of so many embeddings of the collection, against comparing with all, that the number of
# cells visited is chosen for; then so many times as many: probes lie farther off than references from each other.
RECALL_AT_1, RECALL_AT_10, PROBES, MARGIN = 0.9995, 0.999, 1000, 1.25


def build_index(
    dim: int, sample_ND: EmbeddingsF32, parts: Iterable[tuple[Ints, EmbeddingsF32]], total: int
) -> Approximate:
    """An index of the embeddings in `parts`, about `total` of them; cells are learned from the sample `[N, D]`.

    A search visits as many cells as the promised recall needs, which is measured on the embeddings themselves.
    """
    cells = cells_for(total)
    ivf = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatL2(dim), dim, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2, False
    )
    ivf.cp.niter, ivf.cp.max_points_per_centroid = ROUNDS, POINTS_PER_CELL
    ivf.set_direct_map_type(faiss.DirectMap.Hashtable)
    ivf.train(sample_ND)
    probes_PD = sample_ND[np.random.default_rng(0).integers(len(sample_ND), size=PROBES)]
    truth = faiss.ResultHeap(len(probes_PD), 11)
    count = 0
    for keys, embeddings_ND in parts:
        ivf.add_with_ids(embeddings_ND, keys)
        near, at = faiss.knn(probes_PD, embeddings_ND, min(11, len(keys)))
        truth.add_result(near, keys[at])
        count += len(keys)
    truth.finalize()
    _tune(ivf, probes_PD, truth.I)
    return Approximate(ivf, count)


def cells_for(total: int) -> int:
    """About four times the square root, as FAISS's guidelines advise.

    >>> cells_for(1_000_000)
    4000
    """
    return max(16, min(65_536, round(4 * math.sqrt(total))))


def _tune(ivf: faiss.IndexIVF, probes_PD: EmbeddingsF32, truth_PK: Ints) -> None:
    """Set the smallest number of cells that reaches the promised recall, times the margin."""
    for quarter in range(4 * ivf.nlist.bit_length() + 1):
        ivf.nprobe = min(ivf.nlist, round(2 ** (quarter / 4)))
        _, found = ivf.search(probes_PD, 30)
        if _recalls(found, truth_PK):
            break
    ivf.nprobe = min(ivf.nlist, round(MARGIN * ivf.nprobe))


def _recalls(found_PK: Ints, truth_PK: Ints) -> bool:
    # Each probe finds itself, or its twin, first; its neighbours come after.
    nearest = np.mean([t[1] in f for f, t in zip(found_PK, truth_PK, strict=True)])
    ten = np.mean([np.isin(t[1:], f).mean() for f, t in zip(found_PK, truth_PK, strict=True)])
    return bool(nearest >= RECALL_AT_1 and ten >= RECALL_AT_10)


def sample_keys(keys: Ints, total: int) -> Ints:
    """Keys of embeddings to learn cells from, evenly spread over the order of enrolment."""
    wanted = POINTS_PER_CELL * cells_for(total)
    return keys[:: max(1, len(keys) // wanted)]
