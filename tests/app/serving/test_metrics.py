"""/metrics: what is counted and timed, and under which names."""

import re

from tests.files import drawings
from tests.service import Application

ANGELIC, KANNADA, TIBETAN = "Angelic/character01", "Kannada/character02", "Tibetan/character03"
A, B = drawings(ANGELIC), drawings(KANNADA)


def test_metrics_count_verdicts_refusals_and_answers(service: Application) -> None:
    """By route as declared: names in paths make no new series."""
    service.verify(A[0], A[0])
    service.client.post("/embed", files={"image": b""})
    service.client.get("/collections/some-very-own-name/identities")
    text = service.client.get("/metrics").text
    assert 'diptych_verdicts_total{verdict="similar"}' in text
    assert 'diptych_refused_images_total{code="empty_image"}' in text
    assert 'route="/collections/{collection}/identities",status="404"' in text
    assert "some-very-own-name" not in text


def test_metrics_tell_where_time_goes_and_how_large_the_gallery_is(service: Application) -> None:
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
