"""`model_id` and `calibration_id`: hashes of all that decides an embedding, and of all that decides a verdict."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from app.arrays import Array
from app.checkpoint.format import Architecture
from app.checkpoint.thresholds import OperatingPoint
from app.image.policy import Preprocessing


def compute_model_id(weights: Mapping[str, Array], architecture: Architecture, preprocessing: Preprocessing) -> str:
    """Hash of all that decides an embedding: architecture, preprocessing and weights in canonical order."""
    decided_by = {
        "architecture": architecture.model_dump(mode="json"),
        "preprocessing": asdict(preprocessing),
    }
    return _hash(decided_by, weights)


def compute_calibration_id(
    margin: float, threshold: float, points: list[OperatingPoint], curves: Mapping[str, Array]
) -> str:
    """Hash of all that decides a verdict about a distance."""
    decided_by = {
        "margin": margin,
        "threshold": threshold,
        "operating_points": [asdict(point) for point in points],
    }
    return _hash(decided_by, curves)


def _hash(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(canonical_json(document))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(canonical_json({"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}))
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """The same bytes for the same content, in whatever order its keys come."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
