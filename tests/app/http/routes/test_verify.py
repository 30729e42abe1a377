"""POST /verify: what a verdict says, and how a request that can't be judged is refused."""

from pathlib import Path

import pytest

from app.checkpoint.calibration import probability
from tests.files import CALIBRATED, EVALUATION, drawings
from tests.service import Application, InProcess, assert_problem, diptych

ANGELIC, KANNADA, TIBETAN = "Angelic/character01", "Kannada/character02", "Tibetan/character03"
A, B = drawings(ANGELIC), drawings(KANNADA)


def test_verify_answers_every_field_of_the_contract(service: Application) -> None:
    """What the calibration does not support is null, not left out."""
    answer = service.verify(A[0], A[1]).json()
    assert set(answer) >= {
        *("verdict", "distance", "threshold", "threshold_source", "margin", "model_id", "calibration_id"),
        *("target_fmr", "fmr", "fmr_ci95", "fnmr", "fnmr_ci95", "log_likelihood_ratio", "probability", "prior"),
        *("percentile", "inconclusive_to", "references"),
    }
    assert answer["verdict"] == ("similar" if answer["distance"] <= answer["threshold"] else "dissimilar")
    assert answer["prior"] == 0.5


def test_an_image_is_similar_to_itself_at_distance_zero(service: Application) -> None:
    """Whatever the encoder."""
    answer = service.verify(A[0], A[0]).json()
    assert answer["distance"] < 1e-5
    assert answer["verdict"] == "similar"


def test_verify_is_symmetric(service: Application) -> None:
    """Which image is called a does not matter."""
    one, other = service.verify(A[0], A[1]).json(), service.verify(A[1], A[0]).json()
    assert one["distance"] == pytest.approx(other["distance"], abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.001, 2.0])
def test_a_threshold_in_the_request_decides(service: Application, threshold: float) -> None:
    """And is named as the source."""
    answer = service.verify(A[0], A[1], threshold=str(threshold)).json()
    assert (answer["threshold"], answer["threshold_source"]) == (threshold, "request")
    assert answer["verdict"] == ("similar" if answer["distance"] <= threshold else "dissimilar")
    assert answer["target_fmr"] is None
    if threshold < 0.1:  # too few pairs lie so near to tell
        assert answer["fmr"] is None and answer["fmr_ci95"] is None


def test_a_calibrated_checkpoint_names_its_measured_error_rates(in_process: InProcess) -> None:
    """With the default threshold, and with each supported target."""
    service = in_process(CALIBRATED)
    checkpoint = service.client.get("/checkpoint").json()
    assert checkpoint["threshold_source"] == "calibration"
    points = {point["target_fmr"]: point for point in checkpoint["operating_points"]}
    for fields in ({}, {"target_fmr": "0.01"}, {"target_fmr": "0.1"}):
        answer = service.verify(A[0], A[1], **fields).json()
        point = points[float(fields.get("target_fmr", 0.01))]
        assert answer["threshold_source"] == "calibration"
        assert answer["threshold"] == point["threshold"]
        assert (answer["target_fmr"], answer["fmr"], answer["fnmr"]) == (
            *(point["target_fmr"], point["fmr"]),
            point["fnmr"],
        )


def test_a_target_below_what_the_calibration_supports_is_refused_with_the_smallest(in_process: InProcess) -> None:
    """No promise without false matches to rest it on; any rate above is kept."""
    service = in_process(CALIBRATED)
    problem = assert_problem(service.verify(A[0], A[1], target_fmr="0.00001"), 422, "not_supported")
    (smallest,) = problem["supported_target_fmr"]
    assert f"{smallest:g}" in problem["detail"]
    before = 0.0
    for target in (smallest, 0.03, 0.05, 0.2):
        answer = service.verify(A[0], A[1], target_fmr=str(target)).json()
        assert (answer["target_fmr"], answer["threshold_source"]) == (target, "calibration")
        assert answer["threshold"] > before
        if answer["fmr_ci95"] is not None:
            low, high = answer["fmr_ci95"]
            assert low <= answer["fmr"] <= high
        before = answer["threshold"]
    assert answer["fmr_ci95"] is not None
    assert_problem(service.verify(A[0], A[1], target_fmr=str(smallest * 0.9)), 422, "not_supported")


def test_a_probability_takes_the_prior_that_the_caller_brings(in_process: InProcess) -> None:
    """Odds are the likelihood ratio times the prior's odds; nearer pairs are likelier, by every figure."""
    service = in_process(CALIBRATED)
    others = [A[0], *(sorted(folder.glob("*.png"))[0] for folder in sorted(EVALUATION.glob("*/*")))]
    for prior in (0.5, 0.01, 0.9):
        answer = service.verify(A[0], A[1], prior=str(prior)).json()
        # Printed: the ratio to 2 decimals, the probability to 3 digits.
        low, high = (probability(answer["log_likelihood_ratio"] + half, prior) for half in (-0.00501, 0.00501))
        assert low * (1 - 0.00501) <= answer["probability"] <= high * (1 + 0.00501)
        assert answer["prior"] == prior
    answers = sorted((service.verify(A[0], other).json() for other in others), key=lambda answer: answer["distance"])
    ratios, percentiles = ([answer[name] for answer in answers] for name in ("log_likelihood_ratio", "percentile"))
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > ratios[-1]
    assert percentiles == sorted(percentiles, reverse=True) and percentiles[0] == 99.99 > percentiles[-1] >= 0


def test_between_two_operating_points_the_verdict_is_inconclusive(in_process: InProcess) -> None:
    """By request, or by the service's setting; off by default."""
    plain, banded = in_process(CALIBRATED), in_process(CALIBRATED, inconclusive_fmr="0.3")
    seen = set()
    for other in [*A[1:6], *B[:6]]:
        sharp = plain.verify(A[0], other, target_fmr="0.05").json()
        assert sharp["inconclusive_to"] is None and sharp["verdict"] != "inconclusive"
        for answer in (
            plain.verify(A[0], other, target_fmr="0.05", inconclusive_fmr="0.3").json(),
            banded.verify(A[0], other, target_fmr="0.05").json(),
        ):
            assert answer["threshold"] == sharp["threshold"] < answer["inconclusive_to"]
            inside = answer["threshold"] < answer["distance"] <= answer["inconclusive_to"]
            assert (answer["verdict"] == "inconclusive") == inside
            seen.add(answer["verdict"])
    assert len(seen) >= 2
    assert_problem(plain.verify(A[0], A[1], target_fmr="0.1", inconclusive_fmr="0.05"), 422, "conflicting_fields")
    # a request that leaves no room for the setting's band gets none, and no refusal
    assert banded.verify(A[0], A[1], target_fmr="0.4").json()["inconclusive_to"] is None


def test_a_band_that_the_calibration_cannot_hold_is_named_at_the_start(tmp_path: Path) -> None:
    """Not at the first request."""
    done = diptych("serve", DIPTYCH_CHECKPOINT=CALIBRATED, DIPTYCH_INCONCLUSIVE_FMR="0.0001",
                   DIPTYCH_DATA_DIR=str(tmp_path / "data"))  # fmt: skip
    assert done.returncode == 2
    assert "DIPTYCH_INCONCLUSIVE_FMR" in done.stderr and "Traceback" not in done.stderr


def test_a_claim_is_judged_at_the_threshold_for_its_number_of_references(in_process: InProcess) -> None:
    """The nearest of several is closer by chance too, so the same rate takes a smaller threshold."""
    service = in_process(CALIBRATED)
    thresholds, rates = [], []
    for count in (1, 2, 3, 5):
        service.enroll(f"a{count}", *A[1 : 1 + min(count, 4)], collection="claims")
        if count == 5:
            service.enroll("a5", A[5], collection="claims")
        answer = service.verify(A[0], identity=f"a{count}", collection="claims", target_fmr="0.1").json()
        assert answer["references"] == count
        thresholds.append(answer["threshold"])
        rates.append(answer["fnmr"])
    assert thresholds == sorted(thresholds, reverse=True) and thresholds[-1] < thresholds[0]
    assert rates[-1] < rates[0]


def test_beyond_the_references_that_were_measured_the_union_bound_speaks(in_process: InProcess) -> None:
    """A larger rate than for one reference, no likelihood ratio."""
    service = in_process(CALIBRATED, max_images="40")
    many = [path for folder in sorted(EVALUATION.glob("*/*")) for path in sorted(folder.glob("*.png"))[:2]][:24]
    service.enroll("many", *many, collection="bound")
    answer = service.verify(A[0], identity="many", collection="bound", threshold="0.9").json()
    one = service.verify(A[0], A[1], threshold="0.9").json()
    assert answer["references"] == 24
    assert answer["fmr"] > one["fmr"]
    assert answer["log_likelihood_ratio"] is None and answer["probability"] is None and answer["percentile"] is None


def test_a_claimed_identity_is_judged_by_its_nearest_reference(service: Application) -> None:
    """The answer names that reference."""
    enrolled = service.enroll("angelic", A[0], A[1], A[2], collection="claims").json()
    answer = service.verify(A[1], identity="angelic", collection="claims").json()
    assert answer["distance"] < 1e-5
    assert answer["reference_id"] == enrolled["references"][1]["reference_id"]


@pytest.mark.parametrize(
    ("fields", "files", "status", "code"),
    [
        ({}, {}, 422, "invalid_request"),
        ({}, {"image_a": A[0]}, 422, "invalid_request"),
        ({}, {"image_b": A[0]}, 422, "invalid_request"),
        ({"identity": "x"}, {"image_a": A[0], "image_b": A[1]}, 422, "conflicting_fields"),
        ({"identity": "x"}, {"image_a": A[0]}, 404, "unknown_collection"),
        ({"identity": "a/b"}, {"image_a": A[0]}, 422, "invalid_name"),
        ({"threshold": "-0.1"}, {"image_a": A[0], "image_b": A[1]}, 422, "invalid_request"),
        ({"threshold": "2.1"}, {"image_a": A[0], "image_b": A[1]}, 422, "invalid_request"),
        ({"threshold": "nan"}, {"image_a": A[0], "image_b": A[1]}, 422, "invalid_request"),
        ({"threshold": "soft"}, {"image_a": A[0], "image_b": A[1]}, 422, "invalid_request"),
        ({"threshold": "0.5", "target_fmr": "0.1"}, {"image_a": A[0], "image_b": A[1]}, 422, "conflicting_fields"),
        ({"target_fmr": "0"}, {"image_a": A[0], "image_b": A[1]}, 422, "invalid_request"),
        ({"prior": "1"}, {"image_a": A[0], "image_b": A[1]}, 422, "invalid_request"),
    ],
)
def test_verify_refuses_by_name(
    service: Application, fields: dict[str, str], files: dict[str, Path], status: int, code: str
) -> None:
    """Every way to ask wrongly has its problem document."""
    sent = {name: path.read_bytes() for name, path in files.items()}
    assert_problem(service.client.post("/verify", data=fields, files=sent), status, code)


def test_a_missing_field_is_named(service: Application) -> None:
    """So that one need not guess."""
    problem = assert_problem(service.client.post("/verify", files={"image_b": b"x"}), 422, "invalid_request")
    assert problem["errors"][0]["field"] == "image_a"
