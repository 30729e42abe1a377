"""Pictures of a training run, drawn for a reader: each returns a figure, none touches global state."""

from collections.abc import Sequence
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

from app.image import ImageU8
from app.matching import EmbeddingsF32
from training.pairs import GRID, Int, PairCounts

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
def learning(history: Sequence[dict[str, Any]]) -> Figure:
    """Loss in training and validation, and validation accuracy and EER, over epochs."""
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = _figure(2)
    marker = "o" if len(history) < 3 else None
    left.plot(
        epochs,
        [row["train_loss"] for row in history],
        color=INK,
        label="training (hard pairs, augmented)",
        marker=marker,
    )
    left.plot(
        epochs, [row["validation_loss"] for row in history], color=NEAR, label="validation (all pairs)", marker=marker
    )
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(title="Contrastive loss", xlabel="epoch")
    left.set_ylim(bottom=0)
    left.legend()
    accuracy = [100 * row["validation_accuracy"] for row in history]
    right.plot(epochs, accuracy, color=GENUINE, marker=marker)
    right.set(title="Validation: right verdicts, %", xlabel="epoch (best threshold, as many genuine as impostor)")
    right.annotate(
        f"{accuracy[-1]:.1f} %", (epochs[-1], accuracy[-1]), (0, -16), textcoords="offset points", ha="right"
    )
    return figure


@matplotlib.rc_context(STYLE)
def distances(counts: PairCounts, margin: float, threshold: float) -> Figure:
    """Histograms of genuine and impostor distances on unseen identities, with margin and threshold."""
    figure, (axes,) = _figure(1)
    figure.set_size_inches(7.6, 3.9)
    bins = np.linspace(0, 2, 81).tolist()
    for name, weight_G, colour in (
        ("genuine", counts.genuine_weight_G, GENUINE),
        ("impostor", counts.impostor_weight_G, IMPOSTOR),
    ):
        axes.hist(GRID, bins=bins, weights=100 * weight_G, color=colour, alpha=0.6, label=f"{name} pairs")
    top = axes.get_ylim()[1]
    axes.axvline(threshold, color=INK, linewidth=1.6)
    axes.text(threshold, top, f" threshold {threshold:.3f}", color=INK, va="top", rotation=90, ha="right")
    axes.axvline(margin, color=INK, linewidth=1.2, linestyle=":")
    axes.text(margin, top, f" margin {margin:g}", color=INK, va="top", rotation=90, ha="right")
    axes.set(title="Distances on identities never trained on", xlabel="distance", ylabel="% of pairs of its kind")
    shown = GRID[(counts.genuine_weight_G + counts.impostor_weight_G) > 0]
    axes.set_xlim(0, min(2.0, max(float(shown.max()) if len(shown) else 2.0, margin) * 1.05))
    figure.legend(loc="outside upper right", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def error_tradeoff(counts: PairCounts, threshold: float) -> Figure:
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
    weak = max(counts.fmr_G[index], counts.fnmr_G[index]) > 0.5  # show all of a bad trade, the corner of a good one
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
def projection(embeddings_ND: EmbeddingsF32, identity_N: Int, images_NHWC: ImageU8, seed: int) -> Figure:
    """PCA and t-SNE of up to 12 unseen identities, a colour each; a thumbnail stands beside each one's middle."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(identity_N))[:12]
    some = np.flatnonzero(np.isin(identity_N, chosen))[:400]
    points = embeddings_ND[some].astype(np.float64)
    figure, axes = _figure(2)
    figure.set_size_inches(11, 5.2)
    colours = matplotlib.colormaps["tab20"](np.linspace(0, 1, 20))
    perplexity = min(30.0, max(1.0, (len(some) - 1) / 4))
    flat = {
        "PCA": PCA(2, random_state=seed).fit_transform(points),
        "t-SNE": TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points),
    }
    for ax, (name, xy) in zip(axes, flat.items(), strict=True):
        ax.grid(visible=False)
        ax.set(title=f"{name} of identities never trained on", xticks=[], yticks=[])
        for number, identity in enumerate(chosen):
            mine = xy[identity_N[some] == identity]
            ax.scatter(mine[:, 0], mine[:, 1], s=18, color=colours[number], alpha=0.8, linewidths=0)
            image = images_NHWC[some][identity_N[some] == identity][0]
            thumbnail = OffsetImage(image.squeeze(), zoom=26 / max(image.shape[:2]), cmap="gray")
            box = AnnotationBbox(
                thumbnail,
                tuple(mine.mean(axis=0)),
                xybox=(20, 20),
                boxcoords="offset points",
                pad=0.1,
                arrowprops={"arrowstyle": "-", "color": colours[number]},
                bboxprops={"edgecolor": colours[number], "linewidth": 2},
            )
            ax.add_artist(box)
        pad = 0.08 * np.ptp(xy, axis=0)
        ax.set_xlim(xy[:, 0].min() - pad[0], xy[:, 0].max() + 2 * pad[0])  # thumbnails stand above and right
        ax.set_ylim(xy[:, 1].min() - pad[1], xy[:, 1].max() + 2 * pad[1])
    return figure
