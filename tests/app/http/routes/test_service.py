"""What the service says of itself, and what every answer carries."""

import subprocess
from pathlib import Path

import pytest

from tests.files import drawings
from tests.service import DIPTYCH, Application, Service, assert_problem

ANGELIC, KANNADA, TIBETAN = "Angelic/character01", "Kannada/character02", "Tibetan/character03"
A, B = drawings(ANGELIC), drawings(KANNADA)
SCHEMATHESIS = DIPTYCH.with_name("schemathesis")


def test_embed_gives_the_unit_embedding_of_the_named_model(service: Application) -> None:
    """Its model_id says what it may be compared with."""
    answer = service.client.post("/embed", files={"image": A[0].read_bytes()}).json()
    checkpoint = service.client.get("/checkpoint").json()
    assert len(answer["embedding"]) == checkpoint["embedding_dim"]
    assert sum(x * x for x in answer["embedding"]) == pytest.approx(1, abs=1e-5)
    assert answer["model_id"] == checkpoint["model_id"]


def test_every_answer_carries_a_request_id_and_keeps_a_harmless_one_of_the_callers(service: Application) -> None:
    """Also an answer that refuses; a harmful one is replaced."""
    assert service.client.get("/healthz").headers["x-request-id"]
    assert service.client.get("/nowhere", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    hostile = service.client.get("/healthz", headers={"X-Request-ID": "a b<script>"})
    assert hostile.headers["x-request-id"] != "a b<script>"


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/nowhere", "/collections"])
def test_every_answer_tells_browsers_to_be_careful(service: Application, path: str) -> None:
    """Neither guess types, nor frame it, nor keep it, nor load anything from elsewhere."""
    headers = service.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
    assert "default-src 'self'" in headers["content-security-policy"]


def test_unknown_paths_and_methods_are_problem_documents(service: Application) -> None:
    """Like everything else."""
    assert_problem(service.client.get("/nowhere"), 404, "not_found")
    assert_problem(service.client.get("/verify"), 405, "method_not_allowed")


def test_the_documentation_needs_no_network(service: Application) -> None:
    """All its scripts and styles come from the service itself."""
    page = service.client.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text.replace("http://www.w3.org", "")
    assert service.client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    assert service.client.get("/", follow_redirects=True).status_code == 200


def test_what_the_openapi_document_promises_is_kept(on_a_socket: Service, tmp_path: Path) -> None:
    """Schemathesis asks for whatever the document allows, and for much that it does not; and finds nothing.

    Left out is its check that all that the document allows is accepted: it can't say what an image is.
    """
    asked = [
        SCHEMATHESIS,
        "run",
        f"{on_a_socket.client.base_url}/openapi.json",
        "--max-examples",
        "10",
        "--checks",
        "all",
    ]
    done = subprocess.run(
        [*asked, "--exclude-checks", "positive_data_acceptance", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout


def test_the_openapi_document_names_problem_documents_as_what_they_are(service: Application) -> None:
    """For every operation."""
    document = service.client.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert list(operation["responses"]["4XX"]["content"]) == ["application/problem+json"]
