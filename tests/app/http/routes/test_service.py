"""The service over a real socket: what it answers, and how it refuses."""

import io
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.checkpoint.calibration import probability
from tests.files import EVALUATION, drawings
from tests.service import DIPTYCH, Serve, Service, assert_problem, diptych

ANGELIC, KANNADA, TIBETAN = "Angelic/character01", "Kannada/character02", "Tibetan/character03"
A, B = drawings(ANGELIC), drawings(KANNADA)
TEXT = Path(__file__)
SCHEMATHESIS = DIPTYCH.with_name("schemathesis")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# --- verify ------------------------------------------------------------------------------------------------


def test_verify_answers_every_field_of_the_contract(service: Service) -> None:
    """What the calibration does not support is null, not left out."""
    answer = service.verify(A[0], A[1]).json()
    assert set(answer) >= {
        *("verdict", "distance", "threshold", "threshold_source", "margin", "model_id", "calibration_id"),
        *("target_fmr", "fmr", "fmr_ci95", "fnmr", "fnmr_ci95", "log_likelihood_ratio", "probability", "prior"),
        *("percentile", "inconclusive_to", "references"),
    }
    assert answer["verdict"] == ("similar" if answer["distance"] <= answer["threshold"] else "dissimilar")
    assert answer["prior"] == 0.5


def test_an_image_is_similar_to_itself_at_distance_zero(service: Service) -> None:
    """Whatever the encoder."""
    answer = service.verify(A[0], A[0]).json()
    assert answer["distance"] < 1e-5
    assert answer["verdict"] == "similar"


def test_verify_is_symmetric(service: Service) -> None:
    """Which image is called a does not matter."""
    one, other = service.verify(A[0], A[1]).json(), service.verify(A[1], A[0]).json()
    assert one["distance"] == pytest.approx(other["distance"], abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.001, 2.0])
def test_a_threshold_in_the_request_decides(service: Service, threshold: float) -> None:
    """And is named as the source."""
    answer = service.verify(A[0], A[1], threshold=str(threshold)).json()
    assert (answer["threshold"], answer["threshold_source"]) == (threshold, "request")
    assert answer["verdict"] == ("similar" if answer["distance"] <= threshold else "dissimilar")
    assert answer["target_fmr"] is None
    if threshold < 0.1:  # too few pairs lie so near to tell
        assert answer["fmr"] is None and answer["fmr_ci95"] is None


def test_a_calibrated_checkpoint_names_its_measured_error_rates(serve: Serve, trained: Path) -> None:
    """With the default threshold, and with each supported target."""
    service = serve(trained)
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


def test_a_target_below_what_the_calibration_supports_is_refused_with_the_smallest(serve: Serve, trained: Path) -> None:
    """No promise without false matches to rest it on; any rate above is kept."""
    service = serve(trained)
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


def test_a_probability_takes_the_prior_that_the_caller_brings(serve: Serve, trained: Path) -> None:
    """Odds are the likelihood ratio times the prior's odds; nearer pairs are likelier, by every figure."""
    service = serve(trained)
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


def test_between_two_operating_points_the_verdict_is_inconclusive(serve: Serve, trained: Path) -> None:
    """By request, or by the service's setting; off by default."""
    plain, banded = serve(trained), serve(trained, inconclusive_fmr="0.3")
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


def test_a_band_that_the_calibration_cannot_hold_is_named_at_the_start(trained: Path, tmp_path: Path) -> None:
    """Not at the first request."""
    done = diptych("serve", DIPTYCH_CHECKPOINT=str(trained), DIPTYCH_INCONCLUSIVE_FMR="0.0001",
                   DIPTYCH_DATA_DIR=str(tmp_path / "data"))  # fmt: skip
    assert done.returncode == 2
    assert "DIPTYCH_INCONCLUSIVE_FMR" in done.stderr and "Traceback" not in done.stderr


def test_a_claim_is_judged_at_the_threshold_for_its_number_of_references(serve: Serve, trained: Path) -> None:
    """The nearest of several is closer by chance too, so the same rate takes a smaller threshold."""
    service = serve(trained)
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


def test_beyond_the_references_that_were_measured_the_union_bound_speaks(serve: Serve, trained: Path) -> None:
    """A larger rate than for one reference, no likelihood ratio."""
    service = serve(trained, max_images="40")
    many = [path for folder in sorted(EVALUATION.glob("*/*")) for path in sorted(folder.glob("*.png"))[:2]][:24]
    service.enroll("many", *many, collection="bound")
    answer = service.verify(A[0], identity="many", collection="bound", threshold="0.9").json()
    one = service.verify(A[0], A[1], threshold="0.9").json()
    assert answer["references"] == 24
    assert answer["fmr"] > one["fmr"]
    assert answer["log_likelihood_ratio"] is None and answer["probability"] is None and answer["percentile"] is None


def test_a_claimed_identity_is_judged_by_its_nearest_reference(service: Service) -> None:
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
    service: Service, fields: dict[str, str], files: dict[str, Path], status: int, code: str
) -> None:
    """Every way to ask wrongly has its problem document."""
    sent = {name: path.read_bytes() for name, path in files.items()}
    assert_problem(service.client.post("/verify", data=fields, files=sent), status, code)


def test_a_missing_field_is_named(service: Service) -> None:
    """So that one need not guess."""
    problem = assert_problem(service.client.post("/verify", files={"image_b": b"x"}), 422, "invalid_request")
    assert problem["errors"][0]["field"] == "image_a"


# --- images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "empty_image"),
        (b"just text", 415, "unsupported_format"),
        (A[0].read_bytes()[:100], 422, "damaged_image"),
        (png(Image.new("L", (100, 100), 255)), 422, "blank_image"),
        (png(Image.new("1", (7000, 7000))), 413, "too_many_pixels"),
        (bytes(1_000_001), 413, "image_too_large"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_by_name_and_field(
    service: Service, data: bytes, status: int, code: str
) -> None:
    """Wherever an image may be sent."""
    good = A[0].read_bytes()
    problem = assert_problem(service.client.post("/verify", files={"image_a": good, "image_b": data}), status, code)
    assert problem["field"] == "image_b"
    assert_problem(service.client.post("/embed", files={"image": data}), status, code)


def test_bytes_decide_not_names_nor_content_types(service: Service) -> None:
    """A PNG that calls itself text is a PNG, a text that calls itself PNG is none."""
    good, text = A[0].read_bytes(), TEXT.read_bytes()
    right = service.client.post("/embed", files={"image": ("notes.txt", good, "text/plain")})
    assert right.status_code == 200
    assert_problem(
        service.client.post("/embed", files={"image": ("a.png", text, "image/png")}), 415, "unsupported_format"
    )


def test_a_body_over_the_limit_is_refused_whether_or_not_it_says_so(service: Service) -> None:
    """By its Content-Length, or by what arrives."""
    limit = 2 * 1_000_000 + 2**20
    large = {"image_a": A[0].read_bytes(), "image_b": bytes(limit)}
    assert_problem(service.client.post("/verify", files=large), 413, "request_too_large")

    request = service.client.build_request("POST", "/verify", files=large)
    body = request.read()
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    headers = {"Content-Type": request.headers["content-type"]}
    assert_problem(service.client.post("/verify", content=chunks, headers=headers), 413, "request_too_large")


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"--x\r\nrubbish", "multipart/form-data; boundary=x", 422),
        (b"rubbish", "multipart/form-data", 400),
        (b"{}", "application/json", 422),
    ],
)
def test_a_malformed_body_is_a_problem_document(
    service: Service, content: bytes, content_type: str, status: int
) -> None:
    """The parser's complaint is the caller's to mend."""
    response = service.client.post("/verify", content=content, headers={"Content-Type": content_type})
    assert_problem(response, status, "malformed_request" if status == 400 else "invalid_request")


# --- enroll and search -------------------------------------------------------------------------------------


def test_enrolled_drawings_are_found_by_other_drawings_of_the_character(serve: Serve, trained: Path) -> None:
    """The whole point: a search with an unseen drawing, best first, one entry an identity."""
    service = serve(trained)
    for character in (ANGELIC, KANNADA, TIBETAN):
        assert service.enroll(character.replace("/", ":"), *drawings(character)[:4]).status_code == 201
    right = 0
    for character in (ANGELIC, KANNADA, TIBETAN):
        for probe in drawings(character)[4:]:
            answer = service.search(probe).json()
            assert (answer["gallery_size"], answer["references"]) == (3, 12)
            assert len(answer["matches"]) == 3
            apart = [match["distance"] for match in answer["matches"]]
            assert apart == sorted(apart)
            for match in answer["matches"]:
                assert match["verdict"] == ("similar" if match["distance"] <= answer["threshold"] else "dissimilar")
            right += answer["matches"][0]["identity"] == character.replace("/", ":")
    assert right >= 4, "of 6 searches; chance alone would give 2"


def test_search_and_verify_agree_on_the_distance(service: Service) -> None:
    """The index is an index, not another opinion."""
    service.enroll("a", A[0], collection="agree")
    for threshold in (None, "0", "0.2345678", "2"):
        fields = {"threshold": threshold} if threshold else {}
        searched, verified = (
            service.search(A[1], collection="agree", **fields).json(),
            service.verify(A[1], A[0], **fields).json(),
        )
        assert searched["threshold"] == verified["threshold"]
        (match,) = searched["matches"]
        assert (match["distance"], match["verdict"]) == (verified["distance"], verified["verdict"])


def test_the_threshold_of_a_search_decides_verdicts_not_matches(service: Service) -> None:
    """Nobody I know is an answer with matches, none of them similar."""
    service.enroll("a", A[0], collection="strict")
    answer = service.search(A[1], collection="strict", threshold="0").json()
    assert [match["verdict"] for match in answer["matches"]] == ["dissimilar"]
    assert answer["threshold_source"] == "request"


def test_a_filter_restricts_a_search_to_identities_with_that_metadata(service: Service) -> None:
    """And the numbers of what was searched, which the threshold for a rate follows from."""
    for name, script, path in (("a", "Angelic", A[0]), ("b", "Tibetan", A[1]), ("c", "Tibetan", A[2])):
        about = json.dumps({"script": script, "checked": True})
        assert service.enroll(name, path, collection="filtered", metadata=about).status_code == 201

    def search(where: object) -> tuple[set[str], int, int]:
        answer = service.search(A[0], collection="filtered", filter=json.dumps(where)).json()
        return {match["identity"] for match in answer["matches"]}, answer["gallery_size"], answer["references"]

    assert search({"script": "Tibetan"}) == ({"b", "c"}, 2, 2)
    assert search({"script": ["Angelic", "Greek"], "checked": True}) == ({"a"}, 1, 1)
    assert search({"script": "Greek"}) == (set(), 0, 0)


@pytest.mark.parametrize(
    "where",
    [
        "[]",
        "{",
        '{"a": null}',
        '{"a": {"b": 1}}',
        '{"a": []}',
        '{"a": [[1]]}',
        '{"a": 1e999}',
        '{"a": 99999999999999999999}',
        json.dumps({"a": list(range(101))}),
        json.dumps({str(n): n for n in range(17)}),
    ],
)
def test_a_filter_that_cannot_be_asked_is_refused(service: Service, where: str) -> None:
    """With what is allowed."""
    service.enroll("a", A[0], collection="asked")
    assert_problem(service.search(A[0], collection="asked", filter=where), 422, "invalid_metadata")


def test_a_filter_may_ask_for_all_that_it_is_allowed_to(service: Service) -> None:
    """Sixteen keys of a hundred values each."""
    service.enroll("a", A[0], collection="wide", metadata=json.dumps({str(n): n for n in range(16)}))
    where = {str(n): list(range(100)) for n in range(16)}
    assert service.search(A[0], collection="wide", filter=json.dumps(where)).json()["gallery_size"] == 1


def test_the_same_request_twice_at_once_is_one_enrolment(service: Service) -> None:
    """Under one Idempotency-Key: both get the same answer."""
    files = {"images": (A[0].name, A[0].read_bytes())}

    def enroll(_: int) -> tuple[int, Any]:
        form = {"identity": "a", "collection": "at-once"}
        key = {"Idempotency-Key": "at-once"}
        response = httpx.post(f"{service.client.base_url}/enroll", data=form, files=files, headers=key, timeout=30)
        return response.status_code, response.json()

    with ThreadPoolExecutor(6) as pool:
        (status, answer), *others = pool.map(enroll, range(6))
    assert status == 201 and all(other == (status, answer) for other in others)


def test_nul_in_a_path_or_a_cursor_is_no_error_of_ours(service: Service) -> None:
    """PostgreSQL can't carry it."""
    service.enroll("a", A[0], collection="nul")
    base = "/collections/nul/identities"
    assert_problem(service.client.delete(f"{base}/a/references/x%00y"), 404, "unknown_reference")
    assert_problem(service.client.get(base, params={"cursor": "AGE="}), 422, "invalid_request")


def test_top_k_counts_identities(service: Service) -> None:
    """The contract's default is 5."""
    for number, path in enumerate(drawings(KANNADA)):
        service.enroll(f"i{number}", path, collection="many")
    assert len(service.search(A[0], collection="many").json()["matches"]) == 5
    assert len(service.search(A[0], collection="many", top_k="2").json()["matches"]) == 2
    assert len(service.search(A[0], collection="many", top_k="50").json()["matches"]) == 6
    assert_problem(service.search(A[0], collection="many", top_k="0"), 422, "invalid_request")


def test_enroll_names_the_images_that_it_rejects_and_keeps_the_others(service: Service) -> None:
    """A bad scan in a batch does not cost the batch."""
    response = service.enroll("a", A[0], TEXT, A[1], collection="partly")
    assert response.status_code == 201
    answer = response.json()
    assert [entry["filename"] for entry in answer["references"]] == [A[0].name, A[1].name]
    (rejected,) = answer["rejected"]
    assert (rejected["filename"], rejected["code"]) == (TEXT.name, "unsupported_format")


def test_enroll_without_a_usable_image_enrolls_nothing(service: Service) -> None:
    """Not even the collection."""
    problem = assert_problem(service.enroll("a", TEXT, TEXT, collection="nothing"), 422, "nothing_enrolled")
    assert len(problem["rejected"]) == 2
    assert_problem(service.search(A[0], collection="nothing"), 404, "unknown_collection")


def test_the_same_image_for_the_same_identity_is_one_reference(service: Service) -> None:
    """Enrolled again, it answers with the reference that it has."""
    first = service.enroll("a", A[0], collection="twice").json()["references"]
    again = service.enroll("a", A[0], A[0], collection="twice").json()["references"]
    assert [entry["reference_id"] for entry in again] == [first[0]["reference_id"]] * 2
    assert service.search(A[0], collection="twice").json()["references"] == 1


def test_a_repeated_request_under_one_idempotency_key_changes_nothing(service: Service) -> None:
    """The same answer; and another request under that key is refused."""

    def post(identity: str, key: str) -> httpx.Response:
        return service.client.post(
            "/enroll",
            data={"identity": identity, "collection": "keys"},
            files={"images": A[0].read_bytes()},
            headers={"Idempotency-Key": key},
        )

    first = post("a", "k1")
    assert post("a", "k1").json() == first.json()
    service.client.delete("/collections/keys/identities/a")
    assert_problem(post("a", "k1"), 410, "deleted_since")
    assert service.search(A[0], collection="keys").json()["matches"] == []
    assert_problem(post("b", "k1"), 422, "idempotency_key_reused")


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "a\x00b", "x" * 129, "\x7f", ".", ".."])
def test_forbidden_names_are_refused(service: Service, name: str) -> None:
    """For identities and for collections."""
    for fields in ({"identity": name}, {"identity": "a", "collection": name}):
        response = service.client.post("/enroll", data=fields, files={"images": A[0].read_bytes()})
        assert response.status_code == 422, fields
        assert response.json()["code"] in ("invalid_name", "invalid_request")


@pytest.mark.parametrize("name", ["Ünï ¢ödé 水", "a:b", "...", "x" * 128, "100%", "a?b#c", " "])
def test_all_other_names_are_the_callers_own(service: Service, name: str) -> None:
    """They come back as they were given."""
    assert service.enroll(name, A[0], collection="names " + name[:100]).json()["identity"] == name
    assert service.search(A[0], collection="names " + name[:100]).json()["matches"][0]["identity"] == name


HOSTILE_METADATA = [r'{"a": "\ud800"}', r'{"\udfff": 1}', '{"a": 1e999}', '{"a": ' + "[" * 40 + "]" * 40 + "}"]


@pytest.mark.parametrize("metadata", HOSTILE_METADATA)
def test_metadata_that_could_not_be_shown_again_is_refused_on_every_way_in(service: Service, metadata: str) -> None:
    """Lone surrogates, endless numbers, deep nests: stored once, they would break every answer about the identity."""
    assert_problem(service.enroll("a", A[0], collection="hostile", metadata=metadata), 422, "invalid_metadata")
    service.enroll("a", A[0], collection="hostile")
    url = "/collections/hostile/identities/a"
    headers = {"Content-Type": "application/json"}
    response = service.client.patch(url, content=f'{{"metadata": {metadata}}}', headers=headers)
    assert response.status_code == 422 and response.headers["content-type"] == "application/problem+json"
    assert service.client.get(url).json()["metadata"] == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"treshold": "0.1"}, "no field 'treshold'"),
        ({"threshold": ["0.1", "0.9"]}, "given 2 times"),
        ({"threshold": ""}, "is empty"),
    ],
)
def test_a_misspelt_repeated_or_empty_field_is_not_passed_over(
    service: Service, fields: dict[str, str | list[str]], words: str
) -> None:
    """A threshold that was meant and ignored would be a wrong verdict."""
    files = {"image_a": A[0].read_bytes(), "image_b": A[1].read_bytes()}
    response = service.client.post("/verify", data=fields, files=files)
    assert words in assert_problem(response, 422, "invalid_request")["detail"]


@pytest.mark.parametrize(
    "metadata", ["[1]", "7", "{", "{'a': 1}", '{"a": NaN}', "[" * 100_000, '"' + "x" * 20_000 + '"']
)
def test_bad_metadata_is_refused(service: Service, metadata: str) -> None:
    """Only a JSON object of moderate size is metadata."""
    assert_problem(service.enroll("a", A[0], collection="meta", metadata=metadata), 422, "invalid_metadata")


def test_metadata_belongs_to_the_identity_and_is_merged(service: Service) -> None:
    """A later enrolment adds and replaces; null removes."""
    service.enroll("a", A[0], collection="merge", metadata=json.dumps({"x": 1, "y": {"deep": True}}))
    service.enroll("a", A[1], collection="merge", metadata=json.dumps({"x": 2, "z": None, "y": None, "w": "ä"}))
    assert service.search(A[0], collection="merge").json()["matches"][0]["metadata"] == {"x": 2, "w": "ä"}


def test_too_many_images_in_one_request_are_refused(service: Service) -> None:
    """This service takes four."""
    problem = assert_problem(service.enroll("a", *[A[0]] * 5, collection="lots"), 413, "too_many_images")
    assert "at most 4" in problem["detail"]


def test_the_threshold_of_a_search_knows_the_gallerys_size(serve: Serve, trained: Path) -> None:
    """The same share of strangers found takes a smaller threshold in a larger gallery, and the answer says what to
    expect."""
    service = serve(trained)
    folders = sorted(EVALUATION.glob("*/*"))
    before = 2.0
    for number, folder in enumerate(folders[:8]):
        service.enroll(folder.name + folder.parent.name, sorted(folder.glob("*.png"))[0], collection="fpir")
        if number not in (0, 3, 7):
            continue
        answer = service.search(A[0], collection="fpir", target_fpir="0.5").json()
        assert answer["threshold"] < before and answer["threshold_source"] == "calibration"
        assert answer["target_fpir"] == 0.5 and 0.25 < answer["fpir"] < 0.75
        assert answer["expected_false_matches"] >= answer["fpir"] - 1e-6
        before = answer["threshold"]
    problem = assert_problem(service.search(A[0], collection="fpir", target_fpir="0.0001"), 422, "not_supported")
    assert "gallery of 8 identities" in problem["detail"]
    both = service.search(A[0], collection="fpir", target_fpir="0.1", threshold="0.5")
    assert_problem(both, 422, "conflicting_fields")


def test_nobody_known_is_an_answer(service: Service) -> None:
    """The nearest are listed all the same, and `identity` is null."""
    service.enroll("a", A[0], collection="nobody")
    known = service.search(A[0], collection="nobody").json()
    assert known["identity"] == "a" and known["matches"][0]["verdict"] == "similar"
    stranger = service.search(B[0], collection="nobody", threshold="0.000001").json()
    assert stranger["identity"] is None
    assert stranger["matches"][0]["verdict"] == "dissimilar"


# --- the gallery's contents --------------------------------------------------------------------------------


def test_collections_are_listed_with_their_counts_and_deleted_with_all_in_them(service: Service) -> None:
    """Deleted is deleted at once, for search too."""
    service.enroll("a", A[0], A[1], collection="listed")
    service.enroll("b", A[2], collection="listed")
    entries = {entry["collection"]: entry for entry in service.client.get("/collections").json()["collections"]}
    assert (entries["listed"]["identities"], entries["listed"]["references"]) == (2, 3)
    assert service.client.delete("/collections/listed").status_code == 204
    assert_problem(service.client.delete("/collections/listed"), 404, "unknown_collection")
    assert_problem(service.search(A[0], collection="listed"), 404, "unknown_collection")


def test_identities_come_in_pages(service: Service) -> None:
    """Every one once, by name, whatever the page size."""
    for number in range(5):
        service.enroll(f"i{number}", A[0], collection="pages")
    names, cursor = [], None
    while True:
        page = service.client.get(
            "/collections/pages/identities", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
        ).json()
        names += [entry["identity"] for entry in page["identities"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert names == [f"i{number}" for number in range(5)]
    response = service.client.get("/collections/pages/identities", params={"cursor": "rubbish!"})
    assert_problem(response, 422, "invalid_request")


def test_an_identity_can_be_looked_at_renamed_and_described(service: Service) -> None:
    """And is found under its new name."""
    service.enroll("old", A[0], collection="patch", metadata='{"a": 1, "b": 2}')
    service.enroll("other", A[1], collection="patch")
    url = "/collections/patch/identities/"
    changed = service.client.patch(url + "old", json={"identity": "new", "metadata": {"b": None, "c": 3}})
    assert changed.status_code == 200
    assert (changed.json()["identity"], changed.json()["metadata"]) == ("new", {"a": 1, "c": 3})
    assert_problem(service.client.get(url + "old"), 404, "unknown_identity")
    assert len(service.client.get(url + "new").json()["references"]) == 1
    assert service.search(A[0], collection="patch").json()["matches"][0]["identity"] == "new"
    assert_problem(service.client.patch(url + "new", json={"identity": "other"}), 409, "identity_exists")
    assert_problem(service.client.patch(url + "new", json={"identity": "a/b"}), 422, "invalid_name")
    assert_problem(service.client.patch(url + "new", json={}), 422, "invalid_request")
    assert_problem(service.client.patch(url + "new", json={"nome": "x"}), 422, "invalid_request")


def test_a_deleted_reference_or_identity_is_not_found_any_more(service: Service) -> None:
    """An identity may outlive its references, and then has nothing to verify against."""
    ids = [entry["reference_id"] for entry in service.enroll("a", A[0], A[1], collection="gone").json()["references"]]
    service.enroll("b", A[2], collection="gone")
    url = "/collections/gone/identities/a"
    assert service.client.delete(f"{url}/references/{ids[0]}").status_code == 204
    assert_problem(service.client.delete(f"{url}/references/{ids[0]}"), 404, "unknown_reference")
    found = service.search(A[0], collection="gone").json()
    assert (found["gallery_size"], found["references"]) == (2, 2)
    assert service.client.delete(f"{url}/references/{ids[1]}").status_code == 204
    assert [match["identity"] for match in service.search(A[0], collection="gone").json()["matches"]] == ["b"]
    assert_problem(service.verify(A[0], identity="a", collection="gone"), 409, "no_references")
    assert service.client.delete(url).status_code == 204
    assert_problem(service.verify(A[0], identity="a", collection="gone"), 404, "unknown_identity")


# --- the service itself ------------------------------------------------------------------------------------


def test_embed_gives_the_unit_embedding_of_the_named_model(service: Service) -> None:
    """Its model_id says what it may be compared with."""
    answer = service.client.post("/embed", files={"image": A[0].read_bytes()}).json()
    checkpoint = service.client.get("/checkpoint").json()
    assert len(answer["embedding"]) == checkpoint["embedding_dim"]
    assert sum(x * x for x in answer["embedding"]) == pytest.approx(1, abs=1e-5)
    assert answer["model_id"] == checkpoint["model_id"]


def test_every_answer_carries_a_request_id_and_keeps_a_harmless_one_of_the_callers(service: Service) -> None:
    """Also an answer that refuses; a harmful one is replaced."""
    assert service.client.get("/healthz").headers["x-request-id"]
    assert service.client.get("/nowhere", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    hostile = service.client.get("/healthz", headers={"X-Request-ID": "a b<script>"})
    assert hostile.headers["x-request-id"] != "a b<script>"


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/nowhere", "/collections"])
def test_every_answer_tells_browsers_to_be_careful(service: Service, path: str) -> None:
    """Neither guess types, nor frame it, nor keep it, nor load anything from elsewhere."""
    headers = service.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
    assert "default-src 'self'" in headers["content-security-policy"]


def test_unknown_paths_and_methods_are_problem_documents(service: Service) -> None:
    """Like everything else."""
    assert_problem(service.client.get("/nowhere"), 404, "not_found")
    assert_problem(service.client.get("/verify"), 405, "method_not_allowed")


def test_the_documentation_needs_no_network(service: Service) -> None:
    """All its scripts and styles come from the service itself."""
    page = service.client.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text.replace("http://www.w3.org", "")
    assert service.client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    assert service.client.get("/", follow_redirects=True).status_code == 200


def test_what_the_openapi_document_promises_is_kept(service: Service, tmp_path: Path) -> None:
    """Schemathesis asks for whatever the document allows, and for much that it does not; and finds nothing.

    Left out is its check that all that the document allows is accepted: it can't say what an image is.
    """
    asked = [SCHEMATHESIS, "run", f"{service.client.base_url}/openapi.json", "--max-examples", "10", "--checks", "all"]
    done = subprocess.run(
        [*asked, "--exclude-checks", "positive_data_acceptance", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout


def test_the_openapi_document_names_problem_documents_as_what_they_are(service: Service) -> None:
    """For every operation."""
    document = service.client.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert list(operation["responses"]["4XX"]["content"]) == ["application/problem+json"]


def test_metrics_count_verdicts_refusals_and_answers(service: Service) -> None:
    """By route as declared: names in paths make no new series."""
    service.verify(A[0], A[0])
    service.client.post("/embed", files={"image": b""})
    service.client.get("/collections/some-very-own-name/identities")
    text = service.client.get("/metrics").text
    assert 'diptych_verdicts_total{verdict="similar"}' in text
    assert 'diptych_refused_images_total{code="empty_image"}' in text
    assert 'route="/collections/{collection}/identities",status="404"' in text
    assert "some-very-own-name" not in text


def test_metrics_tell_where_time_goes_and_how_large_the_gallery_is(service: Service) -> None:
    """Each stage, the distances that verdicts were about, refusals by code, references."""

    def value(name: str) -> float:
        text = service.client.get("/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    asked = [f'diptych_stage_seconds_count{{stage="{stage}"}}' for stage in ("wait", "decode", "embed", "search")]
    asked += ['diptych_distance_count{endpoint="verify"}', 'diptych_distance_count{endpoint="search"}']
    asked += ['diptych_problems_total{code="empty_image"}', "diptych_references", "diptych_identities"]
    before = {name: value(name) for name in asked}
    service.enroll("a", A[0], A[1], collection="measured")
    service.verify(A[0], A[1])
    service.search(A[2], collection="measured")
    service.client.post("/embed", files={"image": b""})
    grown = {name: value(name) - before[name] for name in asked}
    assert list(grown.values()) == [4, 6, 3, 1, 1, 1, 1, 2, 1], grown


def test_no_image_bytes_and_no_tracebacks_reach_the_log(service: Service) -> None:
    """After all of the above."""
    log = service.log.read_text()
    assert "Traceback" not in log
    assert "IHDR" not in log
