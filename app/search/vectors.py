"""One collection's embeddings in FAISS: compared one by one while that is cheap, then in an approximate index.

Proposes keys, nearest first; the caller measures their exact distances again, from the database. FAISS is called by one
thread at a time: changing an index excludes searching it.
"""

import faiss
import numpy as np

from app.arrays import EmbeddingsF32, Ints

# FAISS's own distances, which are squared, ascending; and keys.
Proposed = tuple[EmbeddingsF32, Ints]
# Error of a distance to a float16 vector of length 1, which is at most 2^-11 from the float32 vector.
TOLERANCE = 0.001

# Comparing with this many takes about a millisecond; with fewer, an index would gain nothing.
EXACT_UP_TO = 20_000
BLOCK = 65_536
# An index is built again when the collection has grown or shrunk by these factors.
GROWTH, SHRINKAGE = 2.0, 0.5


class Exact:
    """Compares with every embedding. In blocks, since an index that grows is copied, which takes twice its memory."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._blocks: list[faiss.IndexIDMap] = []

    def __len__(self) -> int:
        return sum(int(block.ntotal) for block in self._blocks)

    def add(self, keys: Ints, embeddings_ND: EmbeddingsF32) -> None:
        if not self._blocks or self._blocks[-1].ntotal + len(keys) > BLOCK:
            self._blocks.append(faiss.IndexIDMap(faiss.IndexFlatL2(self._dim)))
        self._blocks[-1].add_with_ids(embeddings_ND, keys)

    def remove(self, keys: Ints) -> None:
        for block in self._blocks:
            block.remove_ids(keys)
        self._blocks = [block for block in self._blocks if block.ntotal]

    def propose(self, probe_D: EmbeddingsF32, reach: int) -> Proposed:
        """The nearest `reach` embeddings, or all if there are fewer: squared distances, ascending, and keys."""
        parts = [_search(block, probe_D, min(reach, block.ntotal)) for block in self._blocks]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
        squared, keys = (np.concatenate(part) for part in zip(*parts, strict=True))
        nearest = np.argsort(squared, kind="stable")[:reach]
        return squared[nearest], keys[nearest]

    @property
    def is_outgrown(self) -> bool:
        return len(self) > EXACT_UP_TO


class Approximate:
    """Inverted lists of float16 numbers: a probe visits the `nprobe` cells whose centres are nearest.

    float16, since the exact distance is taken from the database: it takes half the memory, and has no value ranges that
    later embeddings could exceed.
    """

    def __init__(self, ivf: faiss.IndexIVFScalarQuantizer, built_with: int) -> None:
        self.faiss = ivf
        self.built_with = built_with
        if ivf.direct_map.type != faiss.DirectMap.Hashtable:
            ivf.set_direct_map_type(faiss.DirectMap.Hashtable)

    def __len__(self) -> int:
        return int(self.faiss.ntotal)

    def add(self, keys: Ints, embeddings_ND: EmbeddingsF32) -> None:
        self.faiss.add_with_ids(embeddings_ND, keys)

    def remove(self, keys: Ints) -> None:
        self.faiss.remove_ids(faiss.IDSelectorArray(len(keys), faiss.swig_ptr(keys)))

    def propose(self, probe_D: EmbeddingsF32, reach: int) -> Proposed:
        """Nearly the nearest `reach` embeddings, or all if there are fewer: squared distances, ascending, and keys."""
        reach = min(reach, len(self))
        proposed = _search(self.faiss, probe_D, reach)
        if len(proposed[1]) < reach:  # the cells visited hold too few
            all_cells = faiss.SearchParametersIVF(nprobe=self.faiss.nlist)
            proposed = _search(self.faiss, probe_D, reach, all_cells)
        return proposed

    @property
    def is_outgrown(self) -> bool:
        return not SHRINKAGE * self.built_with <= len(self) <= GROWTH * self.built_with


Vectors = Exact | Approximate


def _search(index: faiss.Index, probe_D: EmbeddingsF32, reach: int, params: object = None) -> Proposed:
    if reach == 0:
        return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
    faiss.omp_set_num_threads(1)  # of this thread: other threads answer other requests
    squared, keys = index.search(probe_D[None, :], reach, params=params)
    exists = keys[0] >= 0
    return squared[0][exists], keys[0][exists]
