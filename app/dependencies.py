"""What a route may ask for, each under one name, so that its signature says what it touches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

from fastapi import Depends, Request

from app import checkpoint as format_1
from app import gallery
from app.calibration import Calibration
from app.checkpoint import Description
from app.database import Database
from app.encoder import Encoder
from app.errors import DiptychError, InvalidRequest, ModelMismatch, StorageUnavailable, UsageError
from app.index import GalleryIndex
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.settings import Settings


@dataclass
class Resources:
    """What the service holds while it lives."""

    settings: Settings
    description: Description
    calibration: Calibration
    encoder: Encoder
    pipeline: Pipeline
    database: Database
    index: GalleryIndex
    metrics: Metrics
    ready: bool = False


@contextmanager
def opened(settings: Settings) -> Iterator[Resources]:
    """Load the checkpoint and open the gallery. Raises `UsageError` for what the operator has to mend."""
    checkpoint = format_1.load(settings.checkpoint)
    calibration = Calibration(checkpoint)
    if settings.inconclusive_fmr is not None:
        try:
            calibration.band(calibration.choose(), settings.inconclusive_fmr)
        except DiptychError as problem:
            raise UsageError(
                f"DIPTYCH_INCONCLUSIVE_FMR can't be {settings.inconclusive_fmr:g}: {problem.detail}"
            ) from None
    encoder = Encoder(checkpoint, settings.encoder_threads)
    metrics = Metrics(encoder.model_id, version("diptych"))
    pipeline = Pipeline(encoder, settings, metrics)
    database = Database(settings.sqlite_path)
    try:
        _check_gallery(database, encoder.model_id, settings.checkpoint)
        yield Resources(
            settings=settings,
            description=checkpoint.description,
            calibration=calibration,
            encoder=encoder,
            pipeline=pipeline,
            database=database,
            index=GalleryIndex(database, encoder.model_id, encoder.embedding_dim),
            metrics=metrics,
        )
    finally:
        pipeline.close()
        database.close()


def _check_gallery(database: Database, model_id: str, checkpoint: str) -> None:
    """Migrate, and refuse a gallery that this checkpoint can't be compared with. Raises `UsageError`."""
    database.migrate()
    try:
        with database.read() as connection:
            gallery.check_model(connection, model_id)
    except ModelMismatch as mismatch:
        raise UsageError(
            f"The gallery {database.path} can't be served with the checkpoint {checkpoint!r}: {mismatch.detail} "
            "Or choose another data directory with DIPTYCH_DATA_DIR and enroll anew."
        ) from None
    except StorageUnavailable as problem:
        raise UsageError(f"The gallery {database.path} can't be read: {problem.__cause__}.") from None


def _resources(request: Request) -> Resources:
    resources: Resources = request.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


async def strict_form(request: Request) -> None:
    """Refuses what a form parser passes over in silence: misspelt, repeated and empty fields.

    An empty `collection` would become the default one, a `treshold` the checkpoint's own.
    """
    form = await request.form()
    known = [field.alias for field in request.scope["route"].dependant.body_params]
    for name in form:
        if name not in known:
            raise InvalidRequest(f"There is no field {name[:40]!r} here. Fields: {', '.join(known)}.")
        values = form.getlist(name)
        if len(values) > 1 and name != "images":
            raise InvalidRequest(f"`{name}` was given {len(values)} times; give it once.")
        if "" in values:
            raise InvalidRequest(f"`{name}` is empty. Give it a value or leave it out.")


def _description(resources: ResourcesDep) -> Description:
    return resources.description


def _calibration(resources: ResourcesDep) -> Calibration:
    return resources.calibration


def _pipeline(resources: ResourcesDep) -> Pipeline:
    return resources.pipeline


def _database(resources: ResourcesDep) -> Database:
    return resources.database


def _index(resources: ResourcesDep) -> GalleryIndex:
    return resources.index


def _metrics(resources: ResourcesDep) -> Metrics:
    return resources.metrics


def _settings(resources: ResourcesDep) -> Settings:
    return resources.settings


DescriptionDep = Annotated[Description, Depends(_description)]
CalibrationDep = Annotated[Calibration, Depends(_calibration)]
PipelineDep = Annotated[Pipeline, Depends(_pipeline)]
DatabaseDep = Annotated[Database, Depends(_database)]
IndexDep = Annotated[GalleryIndex, Depends(_index)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
SettingsDep = Annotated[Settings, Depends(_settings)]
