"""The report of a run: plots, `metrics.json`, the split, and one page that shows them. It shows users' images,
unless they are left out."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

from app.arrays import ImageU8, Ints
from app.checkpoint.format import Checkpoint, printable
from training.calibration import likelihood, rates
from training.calibration.pairs import GRID, count_pairs
from training.data.dataset import Dataset, SplitName
from training.data.lint import Finding
from training.evaluate import embed_images, open_encoder
from training.recipe import Recipe
from training.report import plots
from training.report.hardest import hardest_pairs

# Pairs of each kind that the page shows.
HARDEST = 12


def write(
    checkpoint: Checkpoint,
    dataset: Dataset,
    splits: dict[SplitName, Ints],
    history: Sequence[dict[str, Any]],
    findings: Sequence[Finding],
    *,
    with_images: bool = True,
) -> None:
    """Write the report of a training run into the checkpoint's folder `report`.

    Figures and pictures are of the test identities, embedded by the encoder as it will serve. Without images
    neither thumbnails nor pairs are shown.
    """
    directory, description = checkpoint.directory / "report", checkpoint.description
    directory.mkdir(exist_ok=True)
    encoder = open_encoder(checkpoint)
    of = {name: dataset.images_of(splits[name]) for name in ("calibration", "test")}
    embeddings = {name: embed_images(encoder, dataset.images_NHWC, of[name], progress=False) for name in of}
    counts = {
        name: count_pairs(embeddings[name], dataset.identity_N[of[name]], dataset.group_N[of[name]]) for name in of
    }
    test, identity_N = counts["test"], dataset.identity_N[of["test"]]

    def picture(index: int) -> ImageU8:
        return np.asarray(dataset.images_NHWC[of["test"][index]])

    curves = checkpoint.curves()
    llr_G = np.interp(GRID, curves["distance"], curves["llr_1"])
    figures = {
        "learning": plots.learning(history),
        "distances": plots.distances(test, description.margin, description.threshold),
        "error_tradeoff": plots.error_tradeoff(test, description.threshold),
        "reliability": plots.reliability(*likelihood.reliability(test, llr_G, np.linspace(0, 1, 11))),
        "projection": plots.projection(
            embeddings["test"], identity_N, picture if with_images else None, description.dataset.split_seed
        ),
    }
    genuine, impostor = hardest_pairs(embeddings["test"], identity_N, HARDEST)
    names = [printable(dataset.identities[identity]) for identity in identity_N]
    for name, pairs, title in (
        ("hardest_genuine", genuine, "Farthest genuine pairs: one identity, called dissimilar first"),
        ("hardest_impostor", impostor, "Nearest impostor pairs: two identities, called similar first"),
    ):
        if with_images and pairs:
            figures[name] = plots.hardest(pairs, picture, names, title)
    photographs = with_images and dataset.images_NHWC.shape[3] == 3
    pictures = {name: _png(figure, photographs) for name, figure in figures.items()}
    for name, png in pictures.items():
        (directory / f"{name}.png").write_bytes(png)

    metrics = rates.metrics(test, description.threshold)
    paths = [printable(dataset.paths[index]) for index in of["test"]]
    hard = {
        kind: [{"image_a": paths[p.first], "image_b": paths[p.second], "distance": p.distance} for p in pairs]
        for kind, pairs in (("genuine", genuine), ("impostor", impostor))
    }
    document = {"test": metrics, "hardest": hard, "history": list(history)}
    (directory / "metrics.json").write_text(json.dumps(document, indent=2) + "\n")
    with (directory / "split.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(["identity", "split"])
        rows.writerows((dataset.identities[i], split) for split, own in splits.items() for i in own)
    page = Environment(loader=PackageLoader("training.report"), autoescape=True).get_template("report.html")
    (directory / "index.html").write_text(
        encoding="utf-8",
        errors="replace",  # names of files need be no Unicode
        data=page.render(
            checkpoint=description,
            metrics=metrics,
            findings=findings,
            with_images=with_images,
            recipe_names=list(Recipe.model_fields),
            pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        ),
    )


def _png(figure: Figure, photographs: bool) -> bytes:
    """A picture as a file; curves and drawings in a palette of 256 colours, which is a third of the size."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    if photographs:
        return drawn.getvalue()
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
