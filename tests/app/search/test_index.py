"""Large collections: the index that they change to, and its snapshots."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from app.database.sqlite import SQLite
from app.gallery.enrolment import NewReference, enroll_identities
from app.gallery.identities import delete_identity
from app.search import snapshots, vectors
from app.search.index import GalleryIndex
from app.search.nearest import ByFaiss
from tests.app.search.brute_force import DIM, LOADED, MODEL, brute_force, enroll, search, unit

Large = Callable[[], GalleryIndex]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SQLite, Large]]:
    """A gallery of 2,000 identities, where 500 references count as many; each call opens another process's index."""
    monkeypatch.setattr("app.search.index.EXACT_UP_TO", 500)
    monkeypatch.setattr(vectors, "EXACT_UP_TO", 500)
    rng = np.random.default_rng(0)
    database = SQLite(tmp_path / "db")
    database.migrate()
    images = {f"i{n}": [NewReference("f", f"{n}", unit(rng))] for n in range(2000)}
    database.write(lambda c: enroll_identities(c, "c", images, LOADED))
    yield database, lambda: GalleryIndex(database, MODEL, DIM, tmp_path / "index")
    database.close()


def kind(index: GalleryIndex) -> type:
    (cached,) = index._collections.values()
    return type(cached.vectors)


def agrees(index: GalleryIndex, database: SQLite, turns: int = 10) -> None:
    """Nothing but recall may differ from reading all, and of so few that is complete."""
    rng = np.random.default_rng(7)
    for _ in range(turns):
        probe = unit(rng)
        assert search(ByFaiss(index), database, probe, 5) == brute_force(database, probe)[:5]


def test_a_large_collection_changes_to_an_index_and_nobody_notices(large: tuple[SQLite, Large]) -> None:
    """Exact at first, then tuned cells; what comes and goes before, during and after is found or gone."""
    database, index = large[0], large[1]()
    agrees(index, database, 2)
    assert kind(index) is vectors.Exact
    index.tend(1)
    assert kind(index) is vectors.Approximate
    agrees(index, database, 3)
    rng = np.random.default_rng(3)
    enroll(database, "new", [unit(rng)])
    database.write(lambda c: delete_identity(c, "c", "i7"))
    agrees(index, database, 3)
    for n in range(100, 1700):
        database.write(lambda c, name=f"i{n}": delete_identity(c, "c", name)) if n % 100 == 0 else None
    database.write(lambda c: [delete_identity(c, "c", f"i{n}") for n in range(101, 1700) if n % 100])
    index.tend(1)
    assert kind(index) is vectors.Exact
    agrees(index, database, 3)


def test_a_restart_takes_up_the_snapshot_and_reads_on(large: tuple[SQLite, Large]) -> None:
    """Without building anew; what changed since it was written is applied."""
    database, open_index = large
    first = open_index()
    first.tend(1)
    enroll(database, "later", [unit(np.random.default_rng(9))])
    again = open_index()
    agrees(again, database, 3)
    assert kind(again) is vectors.Approximate


def test_what_was_deleted_does_not_stay_in_a_snapshot(large: tuple[SQLite, Large], tmp_path: Path) -> None:
    """It goes at the next look, and comes back without it at the end."""
    database, open_index = large
    index = open_index()
    index.tend(1)
    (snapshot,) = (tmp_path / "index").glob("*.snapshot")
    database.write(lambda c: delete_identity(c, "c", "i3"))
    index.tend(1)
    assert not snapshot.exists()
    index.tend(1, closing=True)
    loaded = snapshots.Snapshots(tmp_path / "index", MODEL).load_snapshot(1)
    assert loaded is not None and len(loaded[0]) == 1999
    agrees(open_index(), database, 2)


def test_another_process_adopts_what_one_has_built(
    large: tuple[SQLite, Large], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built once, not once a worker."""
    database, open_index = large
    one, other = open_index(), open_index()
    agrees(other, database, 1)
    one.tend(1)
    monkeypatch.setattr("app.search.index.build_index", None)
    other.tend(1)
    assert kind(other) is vectors.Approximate
    agrees(other, database, 3)


@pytest.mark.parametrize("harm", ["torn", "one byte", "empty", "not ours", "other model", "other history", "ahead"])
def test_a_snapshot_that_cannot_be_trusted_is_ignored(large: tuple[SQLite, Large], tmp_path: Path, harm: str) -> None:
    """Torn, altered, of another encoder, of another gallery, or of a history that a restored backup undid."""
    database, open_index = large
    open_index().tend(1)
    (snapshot,) = (tmp_path / "index").glob("*.snapshot")
    data = bytearray(snapshot.read_bytes())
    head, _, body = bytes(data).partition(b"\n")
    if harm == "torn":
        snapshot.write_bytes(data[: len(data) // 2])
    elif harm == "one byte":
        data[-100] ^= 1
        snapshot.write_bytes(data)
    elif harm == "empty":
        snapshot.write_bytes(b"")
    elif harm == "not ours":
        snapshot.write_bytes(b"[1]\n" + body)
    elif harm == "other model":
        snapshot.write_bytes(head.replace(b'"model"', b'"older"') + b"\n" + body)
    elif harm == "other history":
        database.write(lambda c: c.exec_driver_sql("UPDATE change SET token = randomblob(8)"))
    else:
        database.write(lambda c: c.exec_driver_sql("DELETE FROM change WHERE sequence > 5"))
    database.write(lambda c: delete_identity(c, "c", "i11"))
    index = open_index()
    agrees(index, database, 3)
    assert kind(index) is vectors.Exact


def test_a_cache_that_is_further_behind_than_changes_are_kept_starts_anew(large: tuple[SQLite, Large]) -> None:
    """Rather than missing what it can no longer read."""
    database, open_index = large
    index = open_index()
    agrees(index, database, 1)
    database.write(lambda c: delete_identity(c, "c", "i5"))
    enroll(database, "new", [unit(np.random.default_rng(2))])
    database.write(
        lambda c: c.exec_driver_sql("DELETE FROM change WHERE sequence < (SELECT max(sequence) FROM change)")
    )
    agrees(index, database, 3)
