"""What a soak saw, drawn."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, float]


def draw(rows: Sequence[Row], faults: Sequence[tuple[float, float, str]], endpoints: Sequence[str], path: Path) -> None:
    """Memory, files and threads, latency of each endpoint, answers by status, gallery and drift; faults are shaded."""
    figure, axes = plt.subplots(7, 1, figsize=(13, 21), sharex=True, layout="constrained")
    minutes = [row["seconds"] / 60 for row in rows]

    def line(axis: Axes, name: str, label: str) -> None:
        axis.plot(minutes, [row.get(name, math.nan) for row in rows], label=label, linewidth=1)

    memory, handles, middle, tail, statuses, gallery, drift = axes
    line(memory, "resident_mib", "resident")
    memory.set(ylabel="memory, MiB", ylim=(0, None))
    line(handles, "open_files", "open files")
    line(handles, "threads", "threads")
    handles.set(ylabel="files, threads", ylim=(0, None))
    for endpoint in endpoints:
        line(middle, f"{endpoint}_p50_ms", endpoint)
        line(tail, f"{endpoint}_p99_ms", endpoint)
    middle.set(ylabel="median, ms", yscale="log")
    tail.set(ylabel="p99 of each sample, ms", yscale="log")
    for name in sorted({name for row in rows for name in row if name.startswith("status_")}):
        counts = [row.get(name) or math.nan for row in rows]  # none is no point: a logarithm has no zero
        statuses.plot(minutes, counts, label=name.removeprefix("status_"), linestyle="none", marker=".", markersize=4)
    statuses.set(ylabel="answers a sample, by status", yscale="log")
    line(gallery, "references", "references")
    line(gallery, "identities", "identities")
    gallery.set(ylabel="gallery", ylim=(0, None))
    line(drift, "distance_drift", "drift")
    drift.set(ylabel="drift of distances", xlabel="minutes", ylim=(0, 1))
    for axis in axes:
        for start, end, kind in faults:
            axis.axvspan(start / 60, max(end, start + 1) / 60, color="C3" if "started" in kind else "C1", alpha=0.25)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        axis.grid(alpha=0.3)
    for start, _, kind in faults:
        if kind != "burst":
            memory.annotate(kind, (start / 60, 0), rotation=90, fontsize="small", va="bottom", ha="right")
    memory.set_title("A soak: shaded red where the service was ended and started, orange where a burst came")
    figure.savefig(path, dpi=110)
    plt.close(figure)
