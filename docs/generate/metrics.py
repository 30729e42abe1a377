"""The metrics, from the registry that /metrics shows."""

from app.serving.metrics import Metrics
from docs.generate.markdown import cell, table


def metrics() -> str:
    """One table of names, kinds, labels and help texts."""
    collectors = dict.fromkeys(Metrics().registry._names_to_collectors.values())
    rows = []
    for collector in collectors:
        labels = ", ".join(f"`{name}`" for name in getattr(collector, "_labelnames", ()))
        for family in sorted(collector.describe() or collector.collect(), key=lambda family: family.name):
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            rows.append((f"`{name}`", family.type, labels, cell(family.documentation)))
    return table(("metric", "type", "labels", "meaning"), sorted(rows))
