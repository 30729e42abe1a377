"""What a route may ask for, each under one name, so that its signature says what it touches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

from fastapi import Depends, Request

from app import checkpoint as format_1
from app import gallery
from app.checkpoint import Description
from app.database import Database
from app.encoder import Encoder
from app.errors import InvalidName, UsageError
from app.index import GalleryIndex
from app.metrics import Metrics
from app.pipeline import Pipeline
from app.settings import Settings


@dataclass
class Resources:
    """What the service holds while it lives."""

    settings: Settings
    description: Description
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
    encoder = Encoder(checkpoint, settings.encoder_threads)
    database = Database(settings.sqlite_path)
    database.migrate()
    try:
        with database.read() as connection:
            others = gallery.other_models(connection, encoder.model_id)
        if others:
            held = ", ".join(f"{count} of model {model}" for model, count in others)
            raise UsageError(
                f"The gallery {database.path} holds references ({held}) that the checkpoint {settings.checkpoint!r} "
                f"(model {encoder.model_id}) can't be compared with. Serve the checkpoint they were enrolled with, "
                "or choose another data directory with DIPTYCH_DATA_DIR and enroll anew."
            )
        metrics = Metrics(encoder.model_id, version("diptych"))
        yield Resources(
            settings=settings,
            description=checkpoint.description,
            encoder=encoder,
            pipeline=Pipeline(encoder, settings, metrics),
            database=database,
            index=GalleryIndex(database, encoder.model_id, encoder.embedding_dim),
            metrics=metrics,
        )
    finally:
        database.close()


def _resources(request: Request) -> Resources:
    resources: Resources = request.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


async def refuse_empty_names(request: Request) -> None:
    """An empty form field counts as left out, which would turn a slip into the collection `default`."""
    form = await request.form()
    for field in ("collection", "identity"):
        if form.get(field) == "":
            raise InvalidName(f"`{field}` is empty. Leave it out or give it a name.")


def _description(resources: ResourcesDep) -> Description:
    return resources.description


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
PipelineDep = Annotated[Pipeline, Depends(_pipeline)]
DatabaseDep = Annotated[Database, Depends(_database)]
IndexDep = Annotated[GalleryIndex, Depends(_index)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
SettingsDep = Annotated[Settings, Depends(_settings)]
