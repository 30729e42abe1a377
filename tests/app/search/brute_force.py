"""Galleries of random embeddings, searched by the service's code and by reading all."""

from pathlib import Path

import numpy as np

from app.checkpoint.matching import distances
from app.database.postgres import PostgreSQL
from app.database.sqlite import SQLite
from app.database.transactions import Database
from app.gallery.collections import collection_key
from app.gallery.encoders import Loaded, find_model_key
from app.gallery.enrolment import NewReference, enroll_images
from app.gallery.filters import Filter
from app.gallery.references import references_by_collection
from app.search import nearest
from app.search.by_pgvector import ByPgvector
from app.search.index import GalleryIndex
from app.search.nearest import ByFaiss, Proposer

DIM = 8
MODEL = "model"
LOADED = Loaded(MODEL, DIM, "")


def unit(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def proposer(database: Database, directory: Path, model_id: str = MODEL) -> Proposer:
    if isinstance(database, PostgreSQL):
        return ByPgvector(DIM)
    assert isinstance(database, SQLite)
    return ByFaiss(GalleryIndex(database, model_id, DIM, directory))


def enroll(database: Database, identity: str, embeddings: list[np.ndarray], **metadata: object) -> None:
    images = [NewReference("f", embedding.tobytes().hex(), embedding) for embedding in embeddings]
    database.write(lambda c: enroll_images(c, "c", identity, metadata, images, LOADED))


def brute_force(database: Database, probe: np.ndarray) -> list[tuple[str, float]]:
    """Each identity's nearest reference, by reading all of the database."""
    found: dict[str, float] = {}
    with database.read() as connection:
        for enrolled in references_by_collection(connection, LOADED):
            away = distances(probe, np.stack([one.embedding_D for one in enrolled]))
            for one, distance in zip(enrolled, away.tolist(), strict=True):
                found[one.identity] = min(distance, found.get(one.identity, 2.0))
    return sorted(found.items(), key=lambda item: item[1])


def search(
    proposer: Proposer, database: Database, probe: np.ndarray, k: int, where: Filter | None = None
) -> list[tuple[str, float]]:
    with database.read() as connection:
        key = collection_key(connection, "c")
        model_key = find_model_key(connection, LOADED)
        hits = nearest.find_nearest(connection, proposer, model_key, key, probe, k, where)
    return [(hit.identity, hit.distance) for hit in hits]
