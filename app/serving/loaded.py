"""A checkpoint ready to answer: encoder, calibration, and the index that finds its embeddings. Replaced as a whole."""

from dataclasses import dataclass
from pathlib import Path

from app.checkpoint.calibration import Calibration, read_calibration
from app.checkpoint.encoder import Encoder
from app.checkpoint.format import Description, Runtime
from app.checkpoint.store import load_checkpoint
from app.database.postgres import PostgreSQL
from app.database.sqlite import SQLite
from app.database.transactions import Database
from app.errors import DiptychError, ModelMismatch, StorageUnavailable, UsageError
from app.gallery.encoders import Loaded, find_model_key
from app.search.by_pgvector import ByPgvector
from app.search.index import GalleryIndex
from app.search.nearest import ByFaiss, Proposer
from app.settings import Settings


@dataclass(frozen=True)
class LoadedCheckpoint:
    """One checkpoint, ready to answer. `gallery_encoder` is how the gallery knows its encoder."""

    description: Description
    calibration: Calibration
    encoder: Encoder
    runtime: Runtime
    proposer: Proposer
    gallery_encoder: Loaded

    @property
    def model_id(self) -> str:
        return self.description.model_id


def load_to_serve(name: str, settings: Settings, database: Database) -> LoadedCheckpoint:
    """Load a checkpoint, by directory or bundled name.

    Raises `UsageError` where the checkpoint is refused, or where the settings do not fit it.
    """
    checkpoint = load_checkpoint(name)
    calibration = read_calibration(checkpoint)
    if settings.inconclusive_fmr is not None:
        try:
            calibration.band(calibration.choose(), settings.inconclusive_fmr)
        except DiptychError as problem:
            raise UsageError(
                f"DIPTYCH_INCONCLUSIVE_FMR cannot be {settings.inconclusive_fmr:g}: {problem.detail}"
            ) from None
    encoder = Encoder(checkpoint, settings.encoder_threads, settings.runtime, settings.concurrency)
    where = str(Path(name).resolve()) if Path(name).is_dir() else name
    return LoadedCheckpoint(
        description=checkpoint.description,
        calibration=calibration,
        encoder=encoder,
        runtime=encoder.runtime(),
        proposer=_proposer(database, settings, encoder),
        gallery_encoder=Loaded(encoder.model_id, encoder.embedding_dim, where),
    )


def _proposer(database: Database, settings: Settings, encoder: Encoder) -> Proposer:
    if isinstance(database, SQLite):
        return ByFaiss(GalleryIndex(database, encoder.model_id, encoder.embedding_dim, settings.index_dir))
    assert isinstance(database, PostgreSQL)  # noqa: S101  there are two
    return ByPgvector(encoder.embedding_dim)


def check_gallery(database: Database, loaded: Loaded, checkpoint: str) -> None:
    """Raises `UsageError` where the gallery holds embeddings of another encoder, or cannot be read."""
    try:
        with database.read() as connection:
            find_model_key(connection, loaded)
    except ModelMismatch as mismatch:
        raise UsageError(
            f"The gallery {database.where} cannot be served with the checkpoint {checkpoint!r}: {mismatch.detail} "
            "Or start a new gallery in another data directory (DIPTYCH_DATA_DIR)."
        ) from None
    except StorageUnavailable as problem:
        raise UsageError(f"The gallery {database.where} cannot be read: {problem.detail}") from None
