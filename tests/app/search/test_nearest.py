"""The nearest in the gallery, by FAISS and by pgvector: never behind the database, never ahead of it, exact."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from app.database.pgvector import indexed_distance
from app.database.postgres import PostgreSQL
from app.database.sqlite import SQLite
from app.database.tables import embedding, reference
from app.database.transactions import Database
from app.gallery.collections import collection_key, count_searched, delete_collection
from app.gallery.encoders import Loaded, ModelMismatch, activate_model, find_model_key, register_model
from app.gallery.enrolment import NewReference, add_embeddings, enroll_identities, enroll_images
from app.gallery.filters import Filter
from app.gallery.identities import delete_identity, list_identities
from app.maintenance import migrate
from app.search import nearest, vectors
from tests.app.search.brute_force import DIM, LOADED, brute_force, enroll, proposer, search, unit


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SQLite]:
    opened = SQLite(tmp_path / "sqlite" / "db")
    opened.migrate()
    yield opened
    opened.close()


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
        database = SQLite(Path(directory) / "db")
        database.migrate()
        eager, lazy = (proposer(database, Path(directory) / "index") for _ in range(2))
        for (action, number, count), ask_lazy in history:
            enroll(database, "empty", [])
            if action == "enroll":
                enroll(database, f"i{number}", [unit(rng) for _ in range(count)])
            elif action == "delete":
                enroll(database, f"i{number}", [])
                database.write(lambda c, name=f"i{number}": delete_identity(c, "c", name))
            else:
                database.write(lambda c: delete_collection(c, "c"))
                enroll(database, "empty", [])
            probe = unit(rng)
            expected = brute_force(database, probe)
            for one in (eager, lazy) if ask_lazy else (eager,):
                assert search(one, database, probe, 3) == expected[:3]
        database.close()


def test_a_long_history_searches_like_brute_force(database: Database, tmp_path: Path) -> None:
    """On either database: enrolled, deleted and enrolled anew."""
    rng = np.random.default_rng(1)
    one = proposer(database, tmp_path / "index")
    for turn in range(30):
        enroll(database, f"i{rng.integers(12)}", [unit(rng) for _ in range(rng.integers(1, 6))])
        if turn % 4 == 3:
            with database.read() as connection:
                entries, _ = list_identities(connection, "c", 100, None)
            gone = entries[int(rng.integers(len(entries)))]["identity"]
            database.write(lambda c, name=gone: delete_identity(c, "c", name))
        probe = unit(rng)
        assert search(one, database, probe, 5) == brute_force(database, probe)[:5]


def test_an_identity_with_many_references_does_not_crowd_out_the_others(database: Database, tmp_path: Path) -> None:
    """`top_k` counts identities, however many references the nearest one has."""
    rng = np.random.default_rng(0)
    probe = unit(rng)
    enroll(database, "crowd", [probe, *(probe + unit(rng) * 1e-3 for _ in range(299))])
    for n in range(9):
        enroll(database, f"other{n}", [unit(rng)])
    found = search(proposer(database, tmp_path / "index"), database, probe, 10)
    assert len(found) == 10
    assert found[0] == ("crowd", 0.0)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ({"script": ["Tibetan"]}, {"a", "b"}),
        ({"script": ["Tibetan", "Angelic"]}, {"a", "b", "c"}),
        ({"script": ["Tibetan"], "year": [2015]}, {"b"}),
        ({"year": [2015.0]}, {"b", "d"}),
        ({"checked": [True]}, {"d"}),
        ({"checked": [1]}, {"c"}),
        ({"nothing": ["like it"]}, set()),
        ({'qu"ote': ["it's"]}, {"e"}),
        ({}, {"a", "b", "c", "d", "e"}),
    ],
)
def test_a_filter_searches_the_identities_with_that_metadata_alone(
    database: Database, tmp_path: Path, where: Filter, names: set[str]
) -> None:
    """All keys must match, one of the values each; text, numbers and truth are not mixed up; counts agree."""
    rng = np.random.default_rng(0)
    about: dict[str, dict[str, object]] = {
        "a": {"script": "Tibetan"},
        "b": {"script": "Tibetan", "year": 2015},
        "c": {"script": "Angelic", "checked": 1},
        "d": {"year": 2015, "checked": True, "script": ["Tibetan"]},
        "e": {'qu"ote': "it's"},
    }
    for name, metadata in about.items():
        enroll(database, name, [unit(rng), unit(rng)], **metadata)
    found = search(proposer(database, tmp_path / "index"), database, unit(rng), 10, where)
    assert {name for name, _ in found} == names
    with database.read() as connection:
        key = collection_key(connection, "c")
        assert count_searched(connection, key, where) == (len(names), 2 * len(names))


def test_a_filter_that_most_meet_finds_what_reading_all_would(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where too many meet it to compare them all, the index proposes until enough of them do."""
    monkeypatch.setattr(nearest, "FEW", 10)
    rng = np.random.default_rng(0)
    for n in range(60):
        enroll(database, f"i{n}", [unit(rng)], half=n % 2)
    probe = unit(rng)
    expected = [one for one in brute_force(database, probe) if int(one[0][1:]) % 2 == 1]
    assert search(proposer(database, tmp_path / "index"), database, probe, 12, {"half": [1]}) == expected[:12]


@given(
    away=st.lists(st.floats(0, 2), min_size=1, max_size=40),
    of=st.lists(st.integers(0, 8), min_size=40, max_size=40),
    wanted=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_the_nearest_identities_are_among_the_contenders(
    away: list[float], of: list[int], wanted: int, seed: int
) -> None:
    """However wrong the proposed distances are, within what float16 allows; and few are read in vain."""
    exact_N, identity_N = np.array(away), np.array(of[: len(away)])
    wrong = np.random.default_rng(seed).uniform(-1, 1, len(away)) * vectors.TOLERANCE
    proposed_N = np.maximum(exact_N + wrong, 0)
    order = np.argsort(proposed_N, kind="stable")
    few = order[nearest.contenders(proposed_N[order], identity_N[order], wanted)]

    def ranked(some: np.ndarray) -> list[tuple[int, float]]:
        found: dict[int, float] = {}
        for at in some[np.lexsort((some, exact_N[some]))]:
            found.setdefault(int(identity_N[at]), float(exact_N[at]))
        return list(found.items())[:wanted]

    assert ranked(few) == ranked(np.arange(len(away)))


def test_a_cache_that_is_ahead_of_a_transaction_hides_nothing_from_it(sqlite: SQLite, tmp_path: Path) -> None:
    """Another search took in what came since, nearer than all; this one finds what it can see."""
    rng = np.random.default_rng(0)
    finder, probe = proposer(sqlite, tmp_path / "index"), unit(rng)
    for n in range(40):
        enroll(sqlite, f"i{n}", [unit(rng)])
    expected = brute_force(sqlite, probe)
    with sqlite.read() as older:
        model_key = find_model_key(older, LOADED)
        key = collection_key(older, "c")
        for n in range(5):
            enroll(sqlite, f"near{n}", [probe])
        assert search(finder, sqlite, probe, 1)[0][1] == 0
        hits = nearest.find_nearest(older, finder, model_key, key, probe, 3)
    assert [hit.identity for hit in hits] == [name for name, _ in expected[:3]]


def test_an_encoder_that_was_forgotten_and_comes_back_starts_from_the_truth(sqlite: SQLite, tmp_path: Path) -> None:
    """What was deleted in between is not in its cache any more, though nothing was noted under its name."""
    rng = np.random.default_rng(0)
    finder, probe = proposer(sqlite, tmp_path / "index"), unit(rng)
    for n in range(20):
        enroll(sqlite, f"i{n}", [unit(rng)])
    nearest_one = search(finder, sqlite, probe, 1)[0][0]

    def embed_all(loaded: Loaded) -> None:
        def work(connection: sa.Connection) -> None:
            key = register_model(connection, loaded)
            ids = connection.scalars(sa.select(reference.c.reference_id).order_by(reference.c.key)).all()
            drawn = np.random.default_rng(1)
            add_embeddings(connection, key, {one: unit(drawn) for one in ids})
            activate_model(connection, key)

        sqlite.write(work)

    embed_all(Loaded("other", DIM, ""))
    migrate.forget_other_models(sqlite)
    sqlite.write(lambda c: delete_identity(c, "c", nearest_one))
    embed_all(LOADED)
    assert search(finder, sqlite, probe, 5) == brute_force(sqlite, probe)[:5]


def test_references_of_another_model_are_never_compared(database: Database, tmp_path: Path) -> None:
    """Nor enrolled beside, as long as there are any."""
    rng = np.random.default_rng(0)
    enroll(database, "a", [unit(rng)])
    with database.read() as connection, pytest.raises(ModelMismatch):
        find_model_key(connection, Loaded("another model", DIM, ""))
    other = Loaded("another model", DIM, "")
    with pytest.raises(ModelMismatch):
        database.write(lambda c: enroll_images(c, "d", "b", {}, [NewReference("f", "x", unit(rng))], other))
    database.write(lambda c: delete_collection(c, "c"))
    database.write(lambda c: enroll_images(c, "d", "b", {}, [NewReference("f", "x", unit(rng))], other))


def test_a_second_encoder_of_other_dimensions_grows_beside_the_first(database: Database, tmp_path: Path) -> None:
    """Its embeddings lie between those that answer, and are passed over."""
    rng = np.random.default_rng(0)
    other = database.write(lambda c: register_model(c, Loaded("other", DIM + 3, "")))
    probe = unit(rng)
    for n in range(6):
        enroll(database, f"i{n}", [unit(rng)])
        with database.read() as connection:
            ids = connection.scalars(sa.select(reference.c.reference_id)).all()
        new = {one: np.eye(DIM + 3, dtype=np.float32)[0] for one in ids}
        database.write(lambda c, new=new: add_embeddings(c, other, new))
    assert search(proposer(database, tmp_path / "index"), database, probe, 6) == brute_force(database, probe)


def test_postgresql_searches_by_its_vector_index(postgres: Callable[[], str], tmp_path: Path) -> None:
    """The statement is one that the planner can answer with the index of that model, and the answer is right."""
    database = PostgreSQL(postgres())
    database.migrate()
    rng = np.random.default_rng(0)
    images = {f"i{n}": [NewReference("f", f"{n}", unit(rng))] for n in range(3000)}
    database.write(lambda c: enroll_identities(c, "c", images, LOADED))
    database.write(lambda c: c.exec_driver_sql("ANALYZE"))
    probe, plans = unit(rng), []
    with database.read() as connection:
        away = indexed_distance(embedding.c.vector, sa.literal(probe, embedding.c.vector.type), DIM)
        query = nearest.CANDIDATES.where(embedding.c.model_key == sa.literal_column("1")).order_by(away).limit(10)
        explain = sa.text(
            f"EXPLAIN {query.compile(dialect=connection.dialect, compile_kwargs={'literal_binds': True})}"
        )
        plans = connection.scalars(explain).all()
    assert any("embedding_near_1" in line for line in plans), plans
    found = search(proposer(database, tmp_path), database, probe, 10)
    assert len({name for name, _ in found} & {name for name, _ in brute_force(database, probe)[:10]}) >= 9
    database.close()
