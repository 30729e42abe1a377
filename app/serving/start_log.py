"""What the operator wants to know when the service starts: its address, checkpoint, gallery and keys."""

import logging
from contextlib import suppress
from importlib.metadata import version

from app.checkpoint.thresholds import OperatingPoint
from app.errors import StorageUnavailable
from app.gallery.collections import count_enrolled
from app.serving.resources import Resources

log = logging.getLogger(__name__)


def log_start(resources: Resources) -> None:
    """One line for each."""
    settings, description = resources.settings, resources.live.checkpoint.description
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}{settings.root_path}"
    log.info("Diptych %s at %s; documentation to try it at %s/docs", version("diptych"), url, url)
    threshold = description.default_threshold
    log.info(
        "checkpoint %s, loaded from %s (model %s): similar up to a distance of %.4f, %s",
        *(description.name, settings.checkpoint, description.model_id, threshold.value, promise(threshold.point)),
    )
    with suppress(StorageUnavailable), resources.database.read() as connection:
        identities, references = count_enrolled(connection)
        log.info("gallery %s: %d identities with %d references", resources.database.where, identities, references)
    if keys := len(resources.live.keyring.by_id):
        log.info("API keys: %d; every request needs one", keys)
    else:
        log.info("API keys: none, so whoever reaches this address may use the service (diptych keys create makes one)")


def promise(point: OperatingPoint | None) -> str:
    """What the default threshold promises.

    >>> promise(OperatingPoint(0.01, True, 0.4744, 0.008435, (0.005715, 0.01245), 0.0345))
    'chosen for a false-match rate of 1 % (0.844 % measured)'
    >>> promise(None)
    'which is half the margin: no error rates are promised'
    """
    if point is None:
        return "which is half the margin: no error rates are promised"
    measured = "" if point.fmr is None else f" ({100 * point.fmr:.3g} % measured)"
    return f"chosen for a false-match rate of {100 * point.target_fmr:g} %{measured}"
