"""Draws the pictures in `docs/pictures` with the bundled checkpoint and the example images.

python -m docs.generate.pictures          (needs `make env-training`)

The pictures are committed, so that building the site needs no encoder.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image
from scipy.stats import norm
from sklearn.manifold import TSNE

from app.checkpoint.store import load_checkpoint
from app.checkpoint.thresholds import OperatingPoint

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
EXAMPLES = ROOT / "tests" / "data" / "examples" / "new"
GENUINE, IMPOSTOR, INK = "#0072b2", "#d55e00", "#333333"
PAIRS = (("a/1.png", "a/3.png"), ("a/1.png", "n/1.png"))


def embed() -> tuple[list[str], np.ndarray]:
    """Paths and embeddings of the example images."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "examples.npz"
        diptych = Path(sys.executable).parent / "diptych"
        subprocess.run([diptych, "embed", "default", EXAMPLES, "--output", output, "--quiet"], check=True)
        with np.load(output) as arrays:
            return arrays["paths"].tolist(), arrays["embeddings"]


def densities(curves: dict[str, np.ndarray], width: float = 0.04) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, and the share of genuine and impostor pairs between them, from the cumulative curves."""
    edges = np.arange(0, 1.61, width)
    grid = curves["distance"]
    genuine = np.diff(1 - np.interp(edges, grid, curves["fnmr_all_1"]))
    impostor = np.diff(np.interp(edges, grid, curves["fmr_all_1"]))
    return edges, genuine / width, impostor / width


def histogram(ax: plt.Axes, curves: dict[str, np.ndarray], threshold: float) -> None:
    edges, genuine, impostor = densities(curves)
    ax.stairs(genuine, edges, fill=True, color=GENUINE, alpha=0.55, label="pairs of the same thing")
    ax.stairs(impostor, edges, fill=True, color=IMPOSTOR, alpha=0.55, label="pairs of different things")
    ax.axvline(threshold, color=INK, linewidth=1.5)
    ax.set(xlim=(0, 1.6), xlabel="distance", yticks=[])
    ax.spines[["left", "right", "top"]].set_visible(False)


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(
        PICTURES / name,
        bbox_inches="tight",
        dpi=110,
        metadata={"Software": None} if name.endswith("png") else {"Date": None},
    )
    plt.close(figure)


def draw_verdicts(curves: dict[str, np.ndarray], threshold: float, places: dict[str, np.ndarray]) -> None:
    """The README's picture: two pairs of images, and where their distances fall."""
    figure = plt.figure(figsize=(9, 3.4))
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 4.2), wspace=0.12, hspace=0.12)
    chart = figure.add_subplot(grid[:, 2])
    histogram(chart, curves, threshold)
    top = chart.get_ylim()[1]
    chart.text(threshold, top * 1.02, f"threshold {threshold:.2f}", ha="center", color=INK)
    for row, pair in enumerate(PAIRS):
        distance = float(np.linalg.norm(places[pair[0]] - places[pair[1]]))
        verdict = "similar" if distance <= threshold else "dissimilar"
        colour = GENUINE if verdict == "similar" else IMPOSTOR
        for column, name in enumerate(pair):
            ax = figure.add_subplot(grid[row, column])
            ax.imshow(Image.open(EXAMPLES / name).convert("RGB"))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_color(colour)
            ax.spines[:].set_linewidth(2)
        chart.annotate(
            f"{verdict}\n{distance:.2f}",
            (distance, 0),
            (distance, top * (0.62 if row == 0 else 0.5)),
            ha="center",
            color=colour,
            weight="bold",
            arrowprops={"arrowstyle": "->", "color": colour},
        )
    chart.legend(loc="upper right", frameon=False)
    save(figure, "verdicts.png")


def draw_loss(margin: float = 1.0) -> None:
    """The contrastive loss of one pair against its distance."""
    distance = np.linspace(0, 1.5, 301)
    figure, ax = plt.subplots(figsize=(6, 3))
    ax.plot(distance, distance**2 / 2, color=GENUINE, label="genuine pair: D² / 2")
    ax.plot(
        distance, np.maximum(0, margin - distance) ** 2 / 2, color=IMPOSTOR, label="impostor pair: max(0, m − D)² / 2"
    )
    ax.axvline(margin, color=INK, linewidth=1, linestyle=":")
    ax.axvline(margin / 2, color=INK, linewidth=1, linestyle="--")
    ax.text(margin, 0.62, " margin m", color=INK)
    ax.text(margin / 2, 0.62, " m / 2", color=INK)
    ax.set(xlabel="distance D", ylabel="loss", xlim=(0, 1.5), ylim=(0, 0.7))
    ax.spines[["right", "top"]].set_visible(False)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    save(figure, "loss.svg")


def draw_histograms(curves: dict[str, np.ndarray], threshold: float) -> None:
    """Both kinds of distances, with the two ways to be wrong."""
    figure, ax = plt.subplots(figsize=(7, 3.2))
    histogram(ax, curves, threshold)
    top = ax.get_ylim()[1]
    ax.text(threshold, top * 1.27, f"threshold {threshold:.2f}", ha="center", color=INK)
    ax.annotate("false non-matches:\ngenuine, but farther",
                (threshold + 0.05, top * 0.02), (threshold + 0.05, top * 0.72),
                color=GENUINE, arrowprops={"arrowstyle": "->", "color": GENUINE})  # fmt: skip
    ax.set_ylim(0, 1.25 * top)
    ax.annotate("false matches:\nimpostors, but nearer", (threshold - 0.04, top * 0.005), (0.02, top * 1.1),
                color=IMPOSTOR, arrowprops={"arrowstyle": "->", "color": IMPOSTOR})  # fmt: skip
    ax.legend(loc="upper right", frameon=False)
    save(figure, "histograms.svg")


def draw_det(curves: dict[str, np.ndarray], points: list[OperatingPoint]) -> None:
    """FNMR against FMR on normal-deviate axes, with the operating points."""
    fmr, fnmr = curves["fmr_all_1"], curves["fnmr_all_1"]
    shown = (fmr > 2e-4) & (fmr < 0.5) & (fnmr > 5e-4) & (fnmr < 0.7)
    figure, ax = plt.subplots(figsize=(5, 4.2))
    ax.plot(norm.ppf(fmr[shown]), norm.ppf(fnmr[shown]), color=INK)
    for point in points:
        if point.fmr and point.fnmr and point.threshold is not None:
            spot = norm.ppf(point.fmr), norm.ppf(point.fnmr)
            ax.plot(*spot, "o", color=GENUINE)
            ax.annotate(f"  threshold {point.threshold:.2f}", spot, va="bottom", color=GENUINE)
    ticks = np.array([0.001, 0.01, 0.05, 0.2, 0.5])
    labels = [f"{tick:.1%}" for tick in ticks]
    ax.set_xticks(norm.ppf(ticks), labels)
    ax.set_yticks(norm.ppf(ticks), labels)
    ends = norm.ppf([2e-4, 0.5])
    ax.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":")
    ax.set(xlabel="FMR", ylabel="FNMR", xlim=ends, ylim=ends)
    ax.spines[["right", "top"]].set_visible(False)
    save(figure, "det.svg")


def draw_map(paths: list[str], embeddings: np.ndarray) -> None:
    """The example images where t-SNE puts their embeddings."""
    spots = TSNE(perplexity=20, init="pca", random_state=0).fit_transform(embeddings)
    identities = sorted({path.split("/")[0] for path in paths})
    colours = mpl.colormaps["tab20"].resampled(len(identities))
    figure, ax = plt.subplots(figsize=(7, 5))
    for path, spot in zip(paths, spots, strict=True):
        image = np.asarray(Image.open(EXAMPLES / path).convert("L").resize((40, 40)))
        alpha = np.clip(1.4 - image / 180, 0, 1)
        tinted = np.ones((40, 40, 4)) * colours(identities.index(path.split("/")[0]))
        tinted[..., 3] = alpha
        ax.add_artist(mpl.offsetbox.AnnotationBbox(mpl.offsetbox.OffsetImage(tinted, zoom=0.45), spot, frameon=False))
    ax.set(
        xlim=(spots[:, 0].min() - 3, spots[:, 0].max() + 3),
        ylim=(spots[:, 1].min() - 3, spots[:, 1].max() + 3),
        xticks=[],
        yticks=[],
    )
    ax.spines[:].set_visible(False)
    save(figure, "map.png")


def draw_bootstrap(paths: list[str], embeddings: np.ndarray, threshold: float) -> None:
    """FNMR of 2,000 draws of the example identities, with replacement."""
    names = np.array([path.split("/")[0] for path in paths])
    identities = np.unique(names)
    misses = np.array([
        np.mean([
            np.linalg.norm(a - b) > threshold
            for number, a in enumerate(embeddings[names == name])
            for b in embeddings[names == name][number + 1 :]
        ])
        for name in identities
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    rates = misses[rng.integers(0, len(identities), (2000, len(identities)))].mean(axis=1)
    low, high = np.quantile(rates, (0.025, 0.975))
    figure, ax = plt.subplots(figsize=(6, 2.8))
    ax.hist(100 * rates, bins=np.arange(0, 100 * rates.max() + 1, 1), color=GENUINE, alpha=0.55)
    ax.axvspan(100 * low, 100 * high, color=GENUINE, alpha=0.12)
    ax.axvline(100 * misses.mean(), color=INK)
    ax.set(xlabel=f"FNMR in a redraw of the {len(identities)} identities, %", ylabel="redraws", xlim=(0, None))
    ax.set_title(f"measured {misses.mean():.1%}; 95 % of the redraws between {low:.1%} and {high:.1%}", fontsize=10)
    ax.spines[["right", "top"]].set_visible(False)
    save(figure, "bootstrap.svg")


def main() -> None:
    mpl.rcParams |= {"svg.hashsalt": "diptych", "svg.fonttype": "path", "font.size": 10}
    PICTURES.mkdir(exist_ok=True)
    checkpoint = load_checkpoint("default")
    curves, threshold = checkpoint.curves(), checkpoint.description.threshold
    paths, embeddings = embed()
    draw_verdicts(curves, threshold, dict(zip(paths, embeddings, strict=True)))
    draw_loss()
    draw_histograms(curves, threshold)
    draw_det(curves, checkpoint.description.operating_points)
    draw_map(paths, embeddings)
    draw_bootstrap(paths, embeddings, threshold)


if __name__ == "__main__":
    main()
