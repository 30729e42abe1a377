"""Plots of a training run. Each function returns a figure, and none touches global state."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator
from scipy.special import ndtri
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from app.arrays import EmbeddingsF32, Floats, ImageU8, Ints
from training.calibration.pairs import GRID, PairCounts
from training.report.hardest import Pair

# Gives the image `[H, W, C]` at an index.
Picture = Callable[[int], ImageU8]
GENUINE, IMPOSTOR, NEAR, INK = "#1b7f5c", "#c2452d", "#e39b2d", "#33333b"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888890",
    "axes.grid": True,
    "grid.color": "#e6e6ea",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.2 * columns, 3.9), layout="constrained")
    return figure, [figure.add_subplot(1, columns, index + 1) for index in range(columns)]


@matplotlib.rc_context(STYLE)
def plot_learning(history: Sequence[dict[str, Any]]) -> Figure:
    """Loss in training and validation, validation accuracy, and EER, over epochs."""
    epochs = [row["epoch"] for row in history]
    figure, (left, middle, right) = _figure(3)
    figure.set_size_inches(14, 3.9)
    marker = "o" if len(history) < 3 else None

    def line(ax: Axes, name: str, scale: float, **how: Any) -> None:
        values = [np.nan if row[name] is None else scale * row[name] for row in history]
        ax.plot(epochs, values, marker=marker, **how)

    margin_loss = [row["train_genuine_term"] + row["train_impostor_term"] for row in history]
    left.plot(epochs, margin_loss, color=INK, marker=marker, label="training (hard pairs, augmented)")
    line(left, "validation_loss", 1, color=NEAR, label="validation (all pairs)")
    left.set(title="Contrastive loss")
    left.legend(loc="best")
    if any(row["train_loss"] > loss + 1e-6 for row, loss in zip(history, margin_loss, strict=True)):
        total = left.twinx()
        line(total, "train_loss", 1, color="#9a9aa6", linestyle=":", label="total training loss (right axis)")
        total.grid(visible=False)
        total.set_ylim(bottom=0)
        total.spines["right"].set_visible(True)
        total.legend(loc="center right")
    line(middle, "validation_accuracy", 100, color=GENUINE)
    middle.set(title="Validation accuracy, %")
    line(right, "validation_eer", 100, color=IMPOSTOR, label="all impostors")
    if any(row["validation_same_group_eer"] is not None for row in history):
        line(right, "validation_same_group_eer", 100, color=NEAR, label="same group")
    right.set(title="Validation EER, %")
    right.legend()
    for ax in (left, right):
        ax.set_ylim(bottom=0)
    for ax in (left, middle, right):
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@matplotlib.rc_context(STYLE)
def plot_distances(counts: PairCounts, margin: float, threshold: float) -> Figure:
    """Histograms of genuine and impostor distances on test identities, with margin and threshold."""
    figure, (axes,) = _figure(1)
    figure.set_size_inches(7.6, 3.9)
    bins = np.linspace(0, 2, 81).tolist()
    for name, weight_G, colour in (
        ("genuine", counts.genuine_weight_G, GENUINE),
        ("impostor", counts.impostor_weight_G, IMPOSTOR),
    ):
        axes.hist(GRID, bins=bins, weights=100 * weight_G, color=colour, alpha=0.6, label=f"{name} pairs")
    top = axes.get_ylim()[1]
    axes.axvline(threshold, color=INK, linewidth=1.6, zorder=4)
    label: dict[str, Any] = {"color": INK, "va": "top", "ha": "right", "rotation": 90}
    label["bbox"] = {"color": "white", "alpha": 0.7, "pad": 1, "linewidth": 0}  # readable on a bar
    axes.text(threshold, top, f" threshold {threshold:.3f}", **label)
    axes.axvline(margin, color=INK, linewidth=1.2, linestyle=":", zorder=4)
    axes.text(margin, top, f" margin {margin:g}", **label)
    axes.set(title="Distances on test identities", xlabel="distance", ylabel="% of pairs of its kind")
    shown = GRID[(counts.genuine_weight_G + counts.impostor_weight_G) > 0]
    axes.set_xlim(0, min(2.0, max(float(shown.max()) if len(shown) else 2.0, margin) * 1.05))
    figure.legend(loc="outside upper right", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def plot_error_tradeoff(counts: PairCounts, threshold: float) -> Figure:
    """DET: FMR against FNMR on normal-deviate axes (A. Martin et al., Eurospeech 1997), and ROC."""
    figure, (det, roc) = _figure(2)
    index = int(np.searchsorted(GRID, threshold))
    lines = [("all impostors", counts.fmr_G, IMPOSTOR)]
    if counts.same_group_count_G.any():
        lines.append(("same group", counts.same_group_fmr_G, NEAR))
    floor = 1e-5
    for name, fmr_G, colour in lines:
        inside = (fmr_G > floor) & (fmr_G < 1 - floor) & (counts.fnmr_G > floor) & (counts.fnmr_G < 1 - floor)
        det.plot(ndtri(fmr_G[inside]), ndtri(counts.fnmr_G[inside]), color=colour, label=name)
        det.plot(*(ndtri(np.clip(c[index], floor, 1 - floor)) for c in (fmr_G, counts.fnmr_G)), "o", color=colour)
        roc.plot(100 * fmr_G, 100 * (1 - counts.fnmr_G), color=colour, label=name)
        roc.plot(100 * fmr_G[index], 100 * (1 - counts.fnmr_G[index]), "o", color=colour)
    ticks = np.array([0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.99])
    labels = [f"{100 * tick:g}" for tick in ticks]
    det.set_xticks(ndtri(ticks), labels)
    det.set_yticks(ndtri(ticks), labels)
    weak = (
        max(counts.fmr_G[index], counts.fnmr_G[index]) > 0.5
    )  # show all of a poor trade-off, the corner of a good one
    edges = ndtri(np.array([5e-5, 0.9999 if weak else 0.6]))
    det.set(title="DET (dot: the threshold)", xlabel="FMR, %", ylabel="FNMR, %", xlim=edges, ylim=edges)
    det.legend()
    roc.set(
        title="ROC",
        xlabel="FMR, %",
        ylabel="genuine pairs called similar, %",
        xlim=(-1, 101 if weak else 40),
        ylim=(-1 if weak else 40, 100.5),
    )
    return figure


@matplotlib.rc_context(STYLE)
def plot_reliability(predicted_B: Floats, observed_B: Floats, share_B: Floats) -> Figure:
    """The share of genuine pairs among the pairs that got a probability; bars: the share of pairs that got it."""
    figure, (axes,) = _figure(1)
    figure.set_size_inches(5.6, 4.4)
    axes.plot([0, 100], [0, 100], color="#b0b0b8", linestyle="--", linewidth=1, label="ideal")
    axes.bar(100 * predicted_B, 100 * share_B, width=7, color="#d9d9e0", label="% of pairs")
    axes.plot(100 * predicted_B, 100 * observed_B, "o-", color=GENUINE, label="measured")
    axes.set(
        title="Reliability at prior 0.5",
        xlabel="probability given at prior 0.5, %",
        ylabel="genuine among test pairs, %",
        xlim=(-4, 104),
        ylim=(0, 104),
    )
    axes.legend(loc="upper left")
    return figure


@matplotlib.rc_context(STYLE)
def plot_hardest(pairs: Sequence[Pair], picture: Picture, names: Sequence[str], title: str, columns: int = 4) -> Figure:
    """Pairs side by side, each with its distance and the names of what it shows."""
    rows = max(1, -(-len(pairs) // columns))
    figure = Figure(figsize=(2.7 * columns, 1.95 * rows + 0.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    for number, pair in enumerate(pairs):
        ax = figure.add_subplot(rows, columns, number + 1)
        ax.axis("off")
        first, second = picture(pair.first), picture(pair.second)
        gap = np.full((first.shape[0], max(1, first.shape[1] // 40), first.shape[2]), 190, dtype=np.uint8)
        side_by_side = np.concatenate([gap, first, gap, second, gap], axis=1)
        edge = np.full_like(side_by_side[: gap.shape[1]], 190)
        framed = np.concatenate([edge, side_by_side, edge])
        ax.imshow(framed.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        shown = dict.fromkeys((names[pair.first], names[pair.second]))
        words = "\n".join(name if len(name) <= 30 else "…" + name[-29:] for name in shown)
        ax.set_title(f"{pair.distance:.3f}\n{words}", fontsize=8, fontweight="normal", loc="left", parse_math=False)
    return figure


@matplotlib.rc_context(STYLE)
def plot_projection(embeddings_ND: EmbeddingsF32, identity_N: Ints, picture: Picture | None, seed: int) -> Figure:
    """PCA and t-SNE of up to 12 test identities, each in its own colour, and with a thumbnail if there are images."""
    chosen = np.random.default_rng(seed).permutation(np.unique(identity_N))[:12]
    seed %= 2**32  # scikit-learn's seeds end there
    shown_N = np.concatenate([np.flatnonzero(identity_N == identity)[: 400 // 12] for identity in chosen])
    points = embeddings_ND[shown_N].astype(np.float64)
    figure, axes = _figure(2)
    figure.set_size_inches(11, 5.2)
    colours = matplotlib.colormaps["tab20"](np.linspace(0, 1, 20))
    perplexity = min(30.0, max(1.0, (len(shown_N) - 1) / 4))
    flat = {"PCA": PCA(2, random_state=seed).fit_transform(points)}
    if np.ptp(flat["PCA"], axis=0).min() > 1e-6:  # t-SNE can't start if all points coincide
        flat["t-SNE"] = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    for ax, (name, xy) in zip(axes, flat.items(), strict=False):
        ax.grid(visible=False)
        ax.set(title=f"{name} of test identities", xticks=[], yticks=[])
        for number, identity in enumerate(chosen):
            points_of_identity = xy[identity_N[shown_N] == identity]
            ax.scatter(
                points_of_identity[:, 0], points_of_identity[:, 1], s=18, color=colours[number], alpha=0.8, linewidths=0
            )
            if picture is None:
                continue
            image = picture(int(shown_N[identity_N[shown_N] == identity][0]))
            thumbnail = OffsetImage(image.squeeze(), zoom=26 / max(image.shape[:2]), cmap="gray")
            box = AnnotationBbox(
                thumbnail,
                tuple(points_of_identity.mean(axis=0)),
                xybox=(20, 20),
                boxcoords="offset points",
                pad=0.1,
                arrowprops={"arrowstyle": "-", "color": colours[number]},
                bboxprops={"edgecolor": colours[number], "linewidth": 2},
            )
            ax.add_artist(box)
        pad = 0.08 * np.ptp(xy, axis=0)
        ax.set_xlim(xy[:, 0].min() - pad[0], xy[:, 0].max() + 2 * pad[0])  # room for thumbnails, above and to the right
        ax.set_ylim(xy[:, 1].min() - pad[1], xy[:, 1].max() + 2 * pad[1])
    return figure
