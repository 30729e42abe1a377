"""/collections: what is enrolled can be listed, renamed, described and deleted."""

from tests.files import drawings
from tests.service import Application, assert_problem

ANGELIC, KANNADA, TIBETAN = "Angelic/character01", "Kannada/character02", "Tibetan/character03"
A, B = drawings(ANGELIC), drawings(KANNADA)


def test_nul_in_a_path_or_a_cursor_is_no_error_of_ours(service: Application) -> None:
    """PostgreSQL can't carry it."""
    service.enroll("a", A[0], collection="nul")
    base = "/collections/nul/identities"
    assert_problem(service.client.delete(f"{base}/a/references/x%00y"), 404, "unknown_reference")
    assert_problem(service.client.get(base, params={"cursor": "AGE="}), 422, "invalid_request")


def test_collections_are_listed_with_their_counts_and_deleted_with_all_in_them(service: Application) -> None:
    """Deleted is deleted at once, for search too."""
    service.enroll("a", A[0], A[1], collection="listed")
    service.enroll("b", A[2], collection="listed")
    entries = {entry["collection"]: entry for entry in service.client.get("/collections").json()["collections"]}
    assert (entries["listed"]["identities"], entries["listed"]["references"]) == (2, 3)
    assert service.client.delete("/collections/listed").status_code == 204
    assert_problem(service.client.delete("/collections/listed"), 404, "unknown_collection")
    assert_problem(service.search(A[0], collection="listed"), 404, "unknown_collection")


def test_identities_come_in_pages(service: Application) -> None:
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


def test_an_identity_can_be_looked_at_renamed_and_described(service: Application) -> None:
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


def test_a_deleted_reference_or_identity_is_not_found_any_more(service: Application) -> None:
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
