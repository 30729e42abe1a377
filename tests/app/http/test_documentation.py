"""/docs and what it is made of: real answers as examples, words for every endpoint, errors by status."""

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import httpx
import pytest

from app.http.routes import schemas
from tests.files import drawings
from tests.service import Service

DRAWINGS, OTHERS = drawings("Angelic/character01"), drawings("Kannada/character02")
EXAMPLES = json.loads((files("app.http.routes") / "examples.json").read_text())
IDENTITY = EXAMPLES["SearchAnswer"]["identity"]
# What differs from one gallery, machine or moment to the next.
VARIES = ("reference_id", "created_at", "version", "detail")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service with the bundled checkpoint."""
    running = Service("omniglot", tmp_path_factory.mktemp("documented") / "data")
    yield running.client
    running.stop()


def lasting(answer: Any) -> Any:
    """The answer without what varies."""
    if isinstance(answer, dict):
        return {name: lasting(value) for name, value in answer.items() if name not in VARIES}
    return [lasting(entry) for entry in answer] if isinstance(answer, list) else answer


def test_the_examples_are_what_the_bundled_checkpoint_answers(client: httpx.Client) -> None:
    """To the last digit that is printed: a new checkpoint needs new examples."""
    first, second, other = (path.read_bytes() for path in (DRAWINGS[0], DRAWINGS[1], OTHERS[0]))
    verified = client.post("/verify", files={"image_a": first, "image_b": second}).json()
    assert verified == EXAMPLES["VerifyAnswer"]
    for identity, image, path in (
        (IDENTITY, second, DRAWINGS[1]),
        (EXAMPLES["SearchAnswer"]["matches"][1]["identity"], other, OTHERS[0]),
    ):
        metadata = f'{{"alphabet": "{identity.partition(":")[0]}"}}'
        files = [("images", (path.name, image)), ("images", ("notes.txt", b"notes"))]
        enrolled = client.post("/enroll", data={"identity": identity, "metadata": metadata}, files=files).json()
        if identity == IDENTITY:
            assert lasting(enrolled) == lasting(EXAMPLES["EnrollAnswer"])
    assert lasting(client.post("/search", files={"image": first}).json()) == lasting(EXAMPLES["SearchAnswer"])
    embedded = client.post("/embed", files={"image": first}).json()
    assert embedded["embedding"][:4] == pytest.approx(EXAMPLES["EmbedAnswer"]["embedding"], abs=1e-6)
    base = "/collections/default/identities"
    assert lasting(client.get("/collections").json()) == lasting(EXAMPLES["CollectionsAnswer"])
    assert lasting(client.get(base).json())["identities"][0] == lasting(EXAMPLES["IdentitiesAnswer"])["identities"][0]
    assert lasting(client.get(f"{base}/{IDENTITY}").json()) == lasting(EXAMPLES["IdentityAnswer"])
    checkpoint = client.get("/checkpoint").json()
    assert EXAMPLES["CheckpointAnswer"]["operating_points"][0] in checkpoint["operating_points"]
    names = set(EXAMPLES["CheckpointAnswer"]) - {"operating_points"}
    assert {name: lasting(checkpoint[name]) for name in names} == {
        name: lasting(EXAMPLES["CheckpointAnswer"][name]) for name in names
    }
    assert EXAMPLES["Readiness"]["checks"].items() <= client.get("/readyz").json()["checks"].items()


def test_every_example_fits_its_schema_and_reaches_the_document_whole(client: httpx.Client) -> None:
    """Nulls included, in the order of the answer."""
    document = client.get("/openapi.json").json()
    for name, example in EXAMPLES.items():
        getattr(schemas, name).model_validate(example)
        (shown,) = document["components"]["schemas"][name]["examples"]
        assert shown == example and list(shown) == list(example)


def test_every_operation_has_words_of_its_own_and_names_its_errors(client: httpx.Client) -> None:
    """A summary, a description, and by status the codes that it may answer."""
    document = client.get("/openapi.json").json()
    summaries = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            summaries.append(operation["summary"])
            assert operation["description"] and operation["summary"].lower() != operation["operationId"], (path, method)
            refusals = {int(status): told for status, told in operation["responses"].items() if status.isdecimal()}
            assert {401, 403, 429, 503} <= set(refusals), (path, method)
            for status, told in refusals.items():
                if status < 400:
                    continue
                ((media_type, content),) = told["content"].items()
                assert media_type == "application/problem+json" and content["examples"]
                assert all(f"`{code}`" in told["description"] for code in content["examples"])
                assert all(example["value"]["status"] == status for example in content["examples"].values())
    assert len(set(summaries)) == len(summaries) and {"Alive", "Ready"} <= set(summaries)


@pytest.mark.parametrize(
    "path", ["/checkpoint", "/healthz", "/readyz", "/collections", "/openapi.json", "/nowhere", "/verify"]
)
def test_json_ends_with_a_newline(client: httpx.Client, path: str) -> None:
    """Answers and problems alike, and the length that is announced counts it."""
    answer = client.get(path)
    assert answer.text.endswith("}\n") and not answer.text.endswith("\n\n")
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_an_answer_without_content_stays_so(client: httpx.Client) -> None:
    """A newline after nothing would be content."""
    client.post("/enroll", data={"identity": "a", "collection": "short"}, files={"images": DRAWINGS[0].read_bytes()})
    deleted = client.delete("/collections/short")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert client.get("/healthz").status_code == 200  # over the same connection


def test_the_page_of_the_documentation_lists_no_schemas(client: httpx.Client) -> None:
    """Two dozen of them at its end help nobody."""
    assert '"defaultModelsExpandDepth": -1' in client.get("/docs").text
