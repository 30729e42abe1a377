"""POST /search: who is found, at which threshold, and among whom."""

import json

import pytest

from tests.files import CALIBRATED, EVALUATION, drawings
from tests.service import Application, InProcess, assert_problem

ANGELIC, KANNADA, TIBETAN = "Angelic/character01", "Kannada/character02", "Tibetan/character03"
A, B = drawings(ANGELIC), drawings(KANNADA)


def test_enrolled_drawings_are_found_by_other_drawings_of_the_character(in_process: InProcess) -> None:
    """The whole point: a search with an unseen drawing, best first, one entry an identity."""
    service = in_process(CALIBRATED)
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


def test_search_and_verify_agree_on_the_distance(service: Application) -> None:
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


def test_the_threshold_of_a_search_decides_verdicts_not_matches(service: Application) -> None:
    """Nobody I know is an answer with matches, none of them similar."""
    service.enroll("a", A[0], collection="strict")
    answer = service.search(A[1], collection="strict", threshold="0").json()
    assert [match["verdict"] for match in answer["matches"]] == ["dissimilar"]
    assert answer["threshold_source"] == "request"


def test_a_filter_restricts_a_search_to_identities_with_that_metadata(service: Application) -> None:
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
def test_a_filter_that_cannot_be_asked_is_refused(service: Application, where: str) -> None:
    """With what is allowed."""
    service.enroll("a", A[0], collection="asked")
    assert_problem(service.search(A[0], collection="asked", filter=where), 422, "invalid_metadata")


def test_a_filter_may_ask_for_all_that_it_is_allowed_to(service: Application) -> None:
    """Sixteen keys of a hundred values each."""
    service.enroll("a", A[0], collection="wide", metadata=json.dumps({str(n): n for n in range(16)}))
    where = {str(n): list(range(100)) for n in range(16)}
    assert service.search(A[0], collection="wide", filter=json.dumps(where)).json()["gallery_size"] == 1


def test_top_k_counts_identities(service: Application) -> None:
    """The contract's default is 5."""
    for number, path in enumerate(drawings(KANNADA)):
        service.enroll(f"i{number}", path, collection="many")
    assert len(service.search(A[0], collection="many").json()["matches"]) == 5
    assert len(service.search(A[0], collection="many", top_k="2").json()["matches"]) == 2
    assert len(service.search(A[0], collection="many", top_k="50").json()["matches"]) == 6
    assert_problem(service.search(A[0], collection="many", top_k="0"), 422, "invalid_request")


def test_the_threshold_of_a_search_knows_the_gallerys_size(in_process: InProcess) -> None:
    """The same share of strangers found takes a smaller threshold in a larger gallery, and the answer says what to
    expect."""
    service = in_process(CALIBRATED)
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


def test_nobody_known_is_an_answer(service: Application) -> None:
    """The nearest are listed all the same, and `identity` is null."""
    service.enroll("a", A[0], collection="nobody")
    known = service.search(A[0], collection="nobody").json()
    assert known["identity"] == "a" and known["matches"][0]["verdict"] == "similar"
    stranger = service.search(B[0], collection="nobody", threshold="0.000001").json()
    assert stranger["identity"] is None
    assert stranger["matches"][0]["verdict"] == "dissimilar"
