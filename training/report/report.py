"""The report of a run: plots, `metrics.json`, the split, and one page that shows them all.

It shows some of the user's images, unless they are left out.
"""

import base64
import csv
import io
import json
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

from app.arrays import ImageU8, Ints
from app.checkpoint.format import Checkpoint, printable
from training.calibration import likelihood
from training.calibration.pairs import GRID, count_pairs
from training.calibration.rates import metrics
from training.data.dataset import Dataset
from training.data.lint import Finding
from training.data.splits import SplitName
from training.embed import embed_images, open_encoder
from training.recipe import Recipe
from training.report import plots
from training.report.hardest import hardest_pairs
from training.summary import default_rates, percent

# Hardest pairs of each kind that the page shows.
HARDEST = 12


def write_report(
    checkpoint: Checkpoint,
    dataset: Dataset,
    splits: dict[SplitName, Ints],
    history: Sequence[dict[str, Any]],
    findings: Sequence[Finding],
    *,
    with_images: bool = True,
) -> None:
    """Write the report of a training run into the checkpoint's folder `report`.

    Figures and pictures are of the test identities, embedded by the encoder as it will serve. Without images, the page
    shows neither thumbnails nor pairs.
    """
    directory, description = checkpoint.directory / "report", checkpoint.description
    directory.mkdir(exist_ok=True)
    encoder = open_encoder(checkpoint)
    test_N = dataset.images_of(splits["test"])
    identity_N = dataset.identity_N[test_N]
    embeddings_ND = embed_images(encoder, dataset.images_NHWC, test_N, progress=False)
    counts = count_pairs(embeddings_ND, identity_N, dataset.group_N[test_N])

    def picture(index: int) -> ImageU8:
        return np.asarray(dataset.images_NHWC[test_N[index]])

    curves = checkpoint.curves()
    llr_G = np.interp(GRID, curves["distance"], curves["llr_1"])
    figures = {
        "learning": plots.plot_learning(history),
        "distances": plots.plot_distances(counts, description.margin, description.threshold),
        "error_tradeoff": plots.plot_error_tradeoff(counts, description.threshold),
        "reliability": plots.plot_reliability(*likelihood.reliability(counts, llr_G, np.linspace(0, 1, 11))),
        "projection": plots.plot_projection(
            embeddings_ND, identity_N, picture if with_images else None, description.dataset.split_seed
        ),
    }
    genuine, impostor = hardest_pairs(embeddings_ND, identity_N, HARDEST)
    names = [printable(dataset.identities[identity]) for identity in identity_N]
    for name, pairs, title in (
        ("hardest_genuine", genuine, "Genuine pairs that are farthest apart"),
        ("hardest_impostor", impostor, "Impostor pairs that are nearest to each other"),
    ):
        if with_images and pairs:
            figures[name] = plots.plot_hardest(pairs, picture, names, title)
    photographs = with_images and dataset.images_NHWC.shape[3] == 3
    pictures = {name: _png(figure, photographs) for name, figure in figures.items()}
    for name, png in pictures.items():
        (directory / f"{name}.png").write_bytes(png)

    figures_of_test = metrics(counts, description.threshold)
    paths = [printable(dataset.paths[index]) for index in test_N]
    hard = {
        kind: [{"image_a": paths[p.first], "image_b": paths[p.second], "distance": p.distance} for p in pairs]
        for kind, pairs in (("genuine", genuine), ("impostor", impostor))
    }
    document = {"test": figures_of_test, "hardest": hard, "history": list(history)}
    (directory / "metrics.json").write_text(json.dumps(document, indent=2) + "\n")
    with (directory / "split.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(["identity", "split"])
        rows.writerows((dataset.identities[index], split) for split, members in splits.items() for index in members)
    page = Environment(loader=PackageLoader("training.report"), autoescape=True).get_template("report.html")
    (directory / "index.html").write_text(
        encoding="utf-8",
        errors="replace",  # file names need not be Unicode
        data=page.render(
            checkpoint=description,
            metrics=figures_of_test,
            rates=default_rates(checkpoint),
            percent=percent,
            scalars=shlex.quote(str(directory / "tensorboard")),
            findings=findings,
            with_images=with_images,
            recipe_names=list(Recipe.model_fields),
            pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        ),
    )


def _png(figure: Figure, photographs: bool) -> bytes:
    """A figure as a PNG file; without photographs, in a palette of 256 colours, which takes a third of the bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    if photographs:
        return drawn.getvalue()
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
