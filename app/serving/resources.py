"""What the service holds while it lives: opened together, closed together."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from starlette.types import Scope

from app.database.open import open_database
from app.database.transactions import Database
from app.errors import StorageUnavailable
from app.gallery.collections import count_enrolled
from app.gallery.keys import read_keyring
from app.gallery.originals import Originals
from app.serving import tracing
from app.serving.disks import Disks
from app.serving.drain import Draining
from app.serving.housekeeping import Housekeeping
from app.serving.jobs import make_housekeeping
from app.serving.live import LiveState
from app.serving.loaded import check_gallery, load_to_serve
from app.serving.metrics import Metrics
from app.serving.pipeline import Pipeline
from app.serving.readiness import Check, run_checks
from app.serving.served_gallery import KeptImages, ServedGallery
from app.settings import Settings


@dataclass
class Resources:
    """Routes do not take it whole: `app.http.routes.dependencies` hands each what its signature names."""

    settings: Settings
    pipeline: Pipeline
    database: Database
    originals: Originals
    live: LiveState
    housekeeping: Housekeeping
    metrics: Metrics
    draining: Draining = field(default_factory=Draining)

    def start(self) -> None:
        """Embed an image, then begin housekeeping. The service is ready."""
        self.live.warm_up()
        self.housekeeping.start()

    def close(self) -> None:
        """Finish what is under way, write snapshots, release the gallery. A second call does no harm."""
        self.live.cool_down()
        self.pipeline.close()
        self.housekeeping.close()
        self.database.close()
        if self.metrics.tracing is not None:
            self.metrics.tracing.close()

    def check(self) -> list[Check]:
        """Whether the service can do its work, looked at now."""
        gallery, images = ServedGallery(self.database, self.live), KeptImages(self.originals)
        return run_checks((self.live, self.draining, gallery, images, Disks(self.settings, self.database)))

    def exposition(self) -> bytes:
        """Every metric as of now. A figure that cannot be read keeps the value that it had."""
        metrics, checks = self.metrics, self.check()
        metrics.set_checkpoint(self.live.checkpoint.description)
        metrics.set_encoder_load(self.settings.concurrency, self.pipeline.taken)
        metrics.set_checks(checks)
        metrics.set_tasks(self.housekeeping.failing)
        metrics.set_free_bytes(Disks(self.settings, self.database).free())
        metrics.set_drift()
        if not any(check.name == "gallery" and check.problem for check in checks):
            with suppress(StorageUnavailable), self.database.read() as connection:
                metrics.set_gallery_size(*count_enrolled(connection))
        return metrics.exposition()


def resources_of(scope: Scope) -> Resources:
    """Those that the lifespan put into the state of every request."""
    resources: Resources = scope["state"]["resources"]
    return resources


@contextmanager
def open_resources(settings: Settings) -> Iterator[Resources]:
    """Load the checkpoint and open the gallery. Raises `UsageError` for what the operator has to change."""
    database = open_database(settings)
    try:
        originals = Originals(settings.data_dir, settings.keep_images, database)
        checkpoint = load_to_serve(settings.checkpoint, settings, database)
        check_gallery(database, checkpoint.gallery_encoder, settings.checkpoint)
        metrics = Metrics(tracing.open_tracing(settings))
        with database.read() as connection:
            live = LiveState(checkpoint, read_keyring(connection))
        resources = Resources(
            settings=settings,
            pipeline=Pipeline(settings, metrics),
            database=database,
            originals=originals,
            live=live,
            housekeeping=make_housekeeping(settings, database, originals, live),
            metrics=metrics,
        )
    except BaseException:
        database.close()
        raise
    try:
        yield resources
    finally:
        resources.close()
