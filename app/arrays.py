"""Every type of array in Diptych, and what the letters at the end of an array's name mean.

A name ends with one capital letter for each axis, in order: `embeddings_ND[i]` is the embedding, D numbers, of image i.

    N        images, or enrolled references
    R        rows of N that are worked on at once; references of one claim
    B        images of a batch; draws of a bootstrap
    H, W, C  pixels down, pixels across, channels
    J        images of a batch that become JPEGs
    D        numbers of an embedding
    G        points of the grid of distances
    K        thresholds; the nearest few
    U        units that a bootstrap draws: identities, or groups
    P        pairs of identities; probes
    S        claims, sampled
    I        pairs listed one by one
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ImageU8 = NDArray[np.uint8]
"""Pixels `[H, W, C]` or `[N, H, W, C]`, 0 to 255, upright; C is 1 (grey) or 3 (RGB)."""

EmbeddingsF32 = NDArray[np.float32]
"""Unit embeddings `[D]` or `[N, D]`."""

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]
"""Distances, rates, weights: whatever is computed."""

Ints = NDArray[np.int64]
"""Numbers of images, identities or groups; keys of the database."""

Bools = NDArray[np.bool_]

Array = NDArray[Any]
"""Whatever a file holds, before it is known what."""
