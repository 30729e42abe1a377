"""What answers: a checkpoint with its encoder, its calibration, and what finds its embeddings. Replaced as one."""

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
from app.gallery import encoders as models
from app.gallery.encoders import Loaded
from app.search.index import GalleryIndex
from app.search.nearest import ByFaiss, ByPgvector, Proposer
from app.settings import Settings


@dataclass(frozen=True)
class Serving:
    """One checkpoint, ready to answer."""

    description: Description
    calibration: Calibration
    encoder: Encoder
    runtime: Runtime
    proposer: Proposer
    loaded: Loaded

    @property
    def model_id(self) -> str:
        return self.description.model_id


def open_database(settings: Settings, *, hurried: bool = True) -> Database:
    """The gallery's database, migrated. Raises `UsageError` where it can't be opened.

    Commands are not `hurried`: what they ask may take its time.
    """
    if settings.is_postgresql:
        database: Database = PostgreSQL(settings.database_url or "", hurried=hurried)
    else:
        database = SQLite(settings.sqlite_path)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


def load(name: str, settings: Settings, database: Database) -> Serving:
    """Load a checkpoint, by directory or bundled name. Raises `UsageError` for what the operator has to mend."""
    checkpoint = load_checkpoint(name)
    calibration = read_calibration(checkpoint)
    if settings.inconclusive_fmr is not None:
        try:
            calibration.band(calibration.choose(), settings.inconclusive_fmr)
        except DiptychError as problem:
            raise UsageError(
                f"DIPTYCH_INCONCLUSIVE_FMR can't be {settings.inconclusive_fmr:g}: {problem.detail}"
            ) from None
    encoder = Encoder(checkpoint, settings.encoder_threads, settings.runtime, settings.concurrency)
    where = str(Path(name).resolve()) if Path(name).is_dir() else name
    return Serving(
        description=checkpoint.description,
        calibration=calibration,
        encoder=encoder,
        runtime=encoder.runtime(),
        proposer=_proposer(database, settings, encoder),
        loaded=Loaded(encoder.model_id, encoder.embedding_dim, where),
    )


def _proposer(database: Database, settings: Settings, encoder: Encoder) -> Proposer:
    if isinstance(database, SQLite):
        return ByFaiss(GalleryIndex(database, encoder.model_id, encoder.embedding_dim, settings.index_dir))
    assert isinstance(database, PostgreSQL)  # noqa: S101  there are two
    return ByPgvector(database.flavour, encoder.embedding_dim)


def check_gallery(database: Database, loaded: Loaded, checkpoint: str) -> None:
    """Refuse a gallery that this checkpoint can't be compared with. Raises `UsageError`."""
    try:
        with database.read() as connection:
            models.key_of(connection, loaded)
    except ModelMismatch as mismatch:
        raise UsageError(
            f"The gallery {database.where} can't be served with the checkpoint {checkpoint!r}: {mismatch.detail} "
            "Or choose another data directory with DIPTYCH_DATA_DIR and enroll anew."
        ) from None
    except StorageUnavailable as problem:
        raise UsageError(f"The gallery {database.where} can't be read: {problem.detail}") from None
