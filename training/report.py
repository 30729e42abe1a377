"""The report of a run: plots, `metrics.json`, the split, and one page that shows them. It shows users' images."""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from app.checkpoint import Description
from app.image import ImageU8
from app.matching import EmbeddingsF32
from training import plots
from training.calibration import metrics
from training.pairs import Int, PairCounts


def write(
    directory: Path,
    description: Description,
    *,
    history: Sequence[dict[str, Any]],
    counts: PairCounts,
    embeddings_ND: EmbeddingsF32,
    identity_N: Int,
    images_NHWC: ImageU8,
    splits: Mapping[str, Sequence[str]],
) -> None:
    """Write the report of a training run; `counts` and what follows are of the test identities."""
    directory.mkdir(exist_ok=True)
    figures = {
        "learning": plots.learning(history),
        "distances": plots.distances(counts, description.margin, description.threshold),
        "error_tradeoff": plots.error_tradeoff(counts, description.threshold),
        "projection": plots.projection(embeddings_ND, identity_N, images_NHWC, description.dataset.split_seed),
    }
    pictures = {name: _png(figure) for name, figure in figures.items()}
    for name, png in pictures.items():
        (directory / f"{name}.png").write_bytes(png)
    figures_of_test = metrics(counts, description.threshold)
    document = {"test": figures_of_test, "history": list(history)}
    (directory / "metrics.json").write_text(json.dumps(document, indent=2) + "\n")
    with (directory / "split.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(["identity", "split"])
        rows.writerows((identity, split) for split, names in splits.items() for identity in names)
    page = Environment(loader=PackageLoader("training"), autoescape=True).get_template("report.html")
    (directory / "index.html").write_text(
        encoding="utf-8",
        data=page.render(
            checkpoint=description,
            metrics=figures_of_test,
            pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        ),
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
