"""`diptych report`: the weak spots of a gallery, as a table."""

from typing import Any

import click

from app.checkpoint.calibration import read_calibration
from app.checkpoint.store import load_checkpoint
from app.database.open import open_database
from app.database.sqlite import database_exists
from app.errors import InvalidRequest, ModelMismatch, NotSupported, UsageError
from app.gallery.encoders import Loaded
from app.gallery.references import references_by_collection
from app.search.weak_spots import MOST, Spot, WeakSpots, find_weak_spots
from app.settings import read_settings

# Lines that are printed of each kind; `--output` writes all.
SHOWN = 10


def report_on(target_fmr: float | None, **given: Any) -> list[dict[str, Any]]:
    """Print the weak spots of every collection, and return them.

    Raises `UsageError` where there is no gallery, it belongs to another encoder, or the rate is not supported.
    """
    settings = read_settings(**given)
    if not settings.is_postgresql and not database_exists(settings.sqlite_path):
        raise UsageError(f"There is no gallery {settings.sqlite_path}. Give its directory with --data-dir.")
    checkpoint = load_checkpoint(settings.checkpoint)
    try:
        chosen = read_calibration(checkpoint).choose(target_fmr=target_fmr)
    except (InvalidRequest, NotSupported) as problem:
        raise UsageError(problem.detail) from None
    description = checkpoint.description
    loaded = Loaded(description.model_id, description.embedding_dim, settings.checkpoint)
    database = open_database(settings, hurried=False)
    documents = []
    try:
        with database.read() as connection:
            collections = list(references_by_collection(connection, loaded))
    except ModelMismatch as mismatch:
        raise UsageError(f"{mismatch.detail} Give its checkpoint with --checkpoint.") from None
    finally:
        database.close()
    for enrolled in collections:
        weak_spots = find_weak_spots(enrolled, chosen.value)
        _print_weak_spots(weak_spots)
        documents.append(weak_spots.document())
    if not documents:
        click.echo("Nothing is enrolled.")
    return documents


def _print_weak_spots(weak_spots: WeakSpots) -> None:
    click.echo(
        f"\n{weak_spots.collection}: {weak_spots.identities:,} identities, {weak_spots.references:,} references, "
        f"at the threshold {weak_spots.threshold:.4f}"
    )
    _print_spots(
        "identities whose references disagree",
        weak_spots.disagreeing,
        "{0.identity_a}: {0.reference_a} | {0.reference_b}",
    )
    _print_spots("pairs of identities too close to tell apart", weak_spots.too_close, "{0.identity_a} | {0.identity_b}")
    _print_spots(
        "references that look mislabelled",
        weak_spots.mislabelled,
        "{0.identity_a}: {0.reference_a} is nearer to {0.identity_b}",
    )


def _print_spots(title: str, spots: list[Spot], line: str) -> None:
    more = "at least " if len(spots) >= MOST else ""
    click.echo(f"  {more}{len(spots):,} {title}")
    for spot in spots[:SHOWN]:
        click.echo(f"    {spot.distance:.4f}  {line.format(spot)}")
    if len(spots) > SHOWN:
        click.echo(f"    and {len(spots) - SHOWN:,} more")
