"""The FAISS cache: never behind the database, never ahead of it, exact in what it answers."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app import gallery
from app.database import Database
from app.gallery import NewReference
from app.index import GalleryIndex
from app.matching import distances

DIM = 8
MODEL = "model"


def unit(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def brute_force(database: Database, key: int, probe: np.ndarray) -> list[tuple[str, float]]:
    """Each identity's nearest reference, by reading all of the database."""
    nearest: dict[str, float] = {}
    with database.read() as connection:
        identities, _ = gallery.list_identities(connection, "c", 1000, None)
        for entry in identities:
            if entry["references"]:
                stored = gallery.references_of(connection, "c", entry["identity"], MODEL)
                nearest[entry["identity"]] = float(distances(probe, stored.embeddings_RD).min())
    return sorted(nearest.items(), key=lambda item: item[1])


def search(index: GalleryIndex, database: Database, key: int, probe: np.ndarray, k: int) -> list[tuple[str, float]]:
    hits = index.search(key, probe, k)
    with database.read() as connection:
        about = gallery.describe(connection, [hit.reference_key for hit in hits])
    return [(about[hit.reference_key]["identity"], hit.distance) for hit in hits]


# What may happen to a gallery: enroll into one of five identities, or delete one, or all.
step = st.one_of(
    st.tuples(st.just("enroll"), st.integers(0, 4), st.integers(1, 5)),
    st.tuples(st.just("delete"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("clear"), st.just(0), st.just(0)),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(step, st.booleans()), max_size=12), st.integers(0, 1000))
def test_any_history_searches_like_brute_force_in_every_process(
    history: list[tuple[tuple[str, int, int], bool]], seed: int
) -> None:
    """Two caches over one database, one asked after every step and one now and then, agree with reading it all."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as directory:
        database = Database(Path(directory) / "gallery.db")
        database.migrate()
        eager, lazy = (GalleryIndex(database, MODEL, DIM) for _ in range(2))
        serial = 0
        for (action, number, count), ask_lazy in history:
            with database.write() as connection:
                gallery.enroll(connection, "c", "empty", {}, [], MODEL)
                if action == "enroll":
                    images = [NewReference("f", f"{serial + n}", unit(rng)) for n in range(count)]
                    serial += count
                    gallery.enroll(connection, "c", f"i{number}", {}, images, MODEL)
                elif action == "delete":
                    gallery.enroll(connection, "c", f"i{number}", {}, [], MODEL)
                    gallery.delete_identity(connection, "c", f"i{number}")
                else:
                    gallery.delete_collection(connection, "c")
                    gallery.enroll(connection, "c", "empty", {}, [], MODEL)
                key = gallery.collection_key(connection, "c")
            probe = unit(rng)
            expected = brute_force(database, key, probe)
            for index in (eager, lazy) if ask_lazy else (eager,):
                assert search(index, database, key, probe, 3) == expected[:3]
        database.close()


def test_an_identity_with_many_references_does_not_crowd_out_the_others(tmp_path: Path) -> None:
    """`top_k` counts identities, however many references the nearest one has."""
    rng = np.random.default_rng(0)
    database = Database(tmp_path / "gallery.db")
    database.migrate()
    probe = unit(rng)
    with database.write() as connection:
        near = [NewReference("f", f"{n}", probe) for n in range(300)]
        gallery.enroll(connection, "c", "crowd", {}, near, MODEL)
        for n in range(9):
            gallery.enroll(connection, "c", f"other{n}", {}, [NewReference("f", "x", unit(rng))], MODEL)
        key = gallery.collection_key(connection, "c")
    index = GalleryIndex(database, MODEL, DIM)
    found = search(index, database, key, probe, 10)
    assert len(found) == 10
    assert found[0] == ("crowd", 0.0)


def test_references_of_another_model_are_never_compared(tmp_path: Path) -> None:
    """They stay in the database, and out of every search."""
    rng = np.random.default_rng(0)
    database = Database(tmp_path / "gallery.db")
    database.migrate()
    with database.write() as connection:
        gallery.enroll(connection, "c", "a", {}, [NewReference("f", "x", unit(rng))], "another model")
        key = gallery.collection_key(connection, "c")
    assert GalleryIndex(database, MODEL, DIM).search(key, unit(rng), 5) == []
