"""Real answers, for the documentation: what the bundled checkpoint `omniglot` says of drawings of its test data."""

from typing import Any

MODEL_ID, CALIBRATION_ID = "dafaa10437824792c39e0947456c4687", "f14795e9bb69afad49bbf2b97294d7c6"
REFERENCE_ID = "01a21069f4d99d4559e80ac57151cafe"
IDENTITY, FILENAME, CREATED_AT = "Angelic:character01", "0965_02.png", "2026-11-25T01:55:09+00:00"
METADATA = {"alphabet": "Angelic"}

VERIFY: dict[str, Any] = {
    "verdict": "similar",
    "distance": 0.322,
    "threshold": 0.4744,
    "threshold_source": "calibration",
    "inconclusive_to": None,
    "margin": 1.0,
    "model_id": MODEL_ID,
    "calibration_id": CALIBRATION_ID,
    "target_fmr": 0.01,
    "fmr": 0.00844,
    "fmr_ci95": [0.00571, 0.0125],
    "fnmr": 0.0345,
    "fnmr_ci95": [0.0137, 0.0865],
    "log_likelihood_ratio": 5.37,
    "probability": 0.995,
    "prior": 0.5,
    "percentile": 99.88,
    "reference_id": None,
    "references": 1,
}
MATCH: dict[str, Any] = {
    "identity": IDENTITY,
    "distance": 0.322,
    "verdict": "similar",
    "reference_id": REFERENCE_ID,
    "metadata": METADATA,
}
OTHER_MATCH: dict[str, Any] = {
    "identity": "Kannada:character02",
    "distance": 0.7953,
    "verdict": "dissimilar",
    "reference_id": "01a21069f4ffd9db9ae27416337f8072",
    "metadata": {"alphabet": "Kannada"},
}
SEARCH: dict[str, Any] = {
    "identity": IDENTITY,
    "matches": [MATCH, OTHER_MATCH],
    "gallery_size": 2,
    "references": 2,
    "threshold": 0.4744,
    "threshold_source": "calibration",
    "target_fpir": None,
    "fpir": 0.0167,
    "expected_false_matches": 0.0169,
    "model_id": MODEL_ID,
    "calibration_id": CALIBRATION_ID,
}
EMBED: dict[str, Any] = {
    "embedding": [0.10229807, -0.06303193, -0.0029062808, -0.07011905],  # the first four of 128
    "model_id": MODEL_ID,
}
ENROLL: dict[str, Any] = {
    "collection": "default",
    "identity": IDENTITY,
    "references": [{"reference_id": REFERENCE_ID, "filename": FILENAME}],
    "rejected": [
        {
            "filename": "notes.txt",
            "code": "unsupported_format",
            "detail": "The bytes are not an image in a supported format.",
        }
    ],
}
COLLECTIONS: dict[str, Any] = {
    "collections": [{"collection": "default", "identities": 2, "references": 2, "created_at": CREATED_AT}]
}
IDENTITIES: dict[str, Any] = {
    "identities": [{"identity": IDENTITY, "metadata": METADATA, "references": 1, "created_at": CREATED_AT}],
    "next_cursor": None,
}
SHOWN_IDENTITY: dict[str, Any] = {
    "collection": "default",
    "identity": IDENTITY,
    "metadata": METADATA,
    "created_at": CREATED_AT,
    "references": [{"reference_id": REFERENCE_ID, "filename": FILENAME, "created_at": CREATED_AT}],
}
CHANGE: dict[str, Any] = {"identity": "angelic-1", "metadata": {"checked": True}}
CHECKPOINT: dict[str, Any] = {
    "name": "omniglot",
    "model_id": MODEL_ID,
    "calibration_id": CALIBRATION_ID,
    "created_at": "2026-11-24T02:30:14+00:00",
    "embedding_dim": 128,
    "preprocessing": {"height": 64, "width": 64, "channels": 1, "aspect": "pad", "decoding_policy": 1},
    "margin": 1.0,
    "threshold": 0.4744,
    "threshold_source": "calibration",
    "target_fmr": 0.01,
    "operating_points": [
        {
            "target_fmr": 0.01,
            "supported": True,
            "threshold": 0.4744,
            "fmr": 0.00844,
            "fmr_ci95": [0.00571, 0.0125],
            "fnmr": 0.0345,
            "fnmr_ci95": [0.0137, 0.0865],
            "measured_on": "test",
            "impostor_pairs": 4961200,
            "false_matches": 41850,
            "genuine_pairs": 30020,
            "false_non_matches": 1037,
        }
    ],
    "calibration": {
        "fingerprint": "a0010054f796a6ce4a3177f43a0de49c",
        "measured_on": "test",
        "identities": 158,
        "images": 3160,
        "genuine_pairs": 30020,
        "impostor_pairs": 4961200,
        "eer": 0.015,
        "same_group_eer": 0.029,
        "note": "Only 5 groups were measured, so intervals are wide.",
        "smallest_fmr": 0.000807,
        "intervals_over": "group",
        "units": 5,
        "likelihood_ratio": "logistic",
        "llr_bounds": [-3.63, 5.68],
        "cllr": 0.0845,
        "cllr_min": 0.0703,
    },
    "dataset": {
        "fingerprint": "a0010054f796a6ce4a3177f43a0de49c",
        "identities": 964,
        "images": 19280,
        "skipped": 0,
        "split_seed": 0,
        "splits": {
            "train": {"identities": 758, "images": 15160},
            "calibration": {"identities": 48, "images": 960},
            "test": {"identities": 158, "images": 3160},
        },
    },
    "runtime": {
        "name": "onnxruntime",
        "version": "1.32.0",
        "precision": "float32",
        "pairs": 130816,
        "max_distance_drift": 3.61e-07,
    },
}
READINESS: dict[str, Any] = {
    "status": "ready",
    "checks": {
        "encoder": {"ok": True, "detail": "has embedded an image"},
        "gallery": {"ok": True, "detail": "can be read and written"},
    },
}
# By the name of the schema that it is an example of.
BY_SCHEMA = {
    "VerifyAnswer": VERIFY,
    "SearchAnswer": SEARCH,
    "EmbedAnswer": EMBED,
    "EnrollAnswer": ENROLL,
    "CollectionsAnswer": COLLECTIONS,
    "IdentitiesAnswer": IDENTITIES,
    "IdentityAnswer": SHOWN_IDENTITY,
    "IdentityChange": CHANGE,
    "CheckpointAnswer": CHECKPOINT,
    "Readiness": READINESS,
}
