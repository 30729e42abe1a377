"""What a checkpoint promises, in figures and lines: for the end of `train` and `calibrate`, and for the report."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.checkpoint.calibration import read_calibration
from app.checkpoint.format import Checkpoint

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class DefaultRates:
    """Error rates at the default threshold, as the service answers them, with their 95 % intervals.

    `fmr` is None where too few false matches, or matches of too few identities, were seen to promise it.
    `fmr_observed` is the rate that was counted nevertheless. All are None without such pairs.
    """

    fmr: float | None
    fmr_ci95: Interval
    fmr_observed: float | None
    fnmr: float | None
    fnmr_ci95: Interval


def default_rates(checkpoint: Checkpoint) -> DefaultRates:
    """The rates at the default threshold, measured on test identities."""
    chosen = checkpoint.description.default_threshold
    rates = read_calibration(checkpoint).figures(0.0, chosen)
    curves = checkpoint.curves()
    observed = float(np.interp(chosen.value, curves["distance"], curves["fmr_all_1"]))
    return DefaultRates(
        rates.fmr, rates.fmr_ci95, None if np.isnan(observed) else observed, rates.fnmr, rates.fnmr_ci95
    )


def percent(rate: float | None, ends: Interval = None) -> str:
    """A rate and its interval as text.

    >>> percent(0.0123, (0.01, 0.02)), percent(None)
    ('1.23 % (1.00 to 2.00)', '-')
    """
    if rate is None:
        return "-"
    return f"{100 * rate:.2f} %" + (f" ({100 * ends[0]:.2f} to {100 * ends[1]:.2f})" if ends else "")


def summary_lines(checkpoint: Checkpoint) -> Iterator[str]:
    """Thresholds and error rates as a table, and what the default threshold promises."""
    description, rates = checkpoint.description, default_rates(checkpoint)
    facts = description.calibration
    yield f"{'target FMR':<13}{'threshold':<12}{'FMR measured (95 %)':<28}{'FNMR measured (95 %)':<28}false matches"
    for point in description.operating_points:
        target = f"{point.target_fmr:<13g}"
        if point.supported and point.threshold is not None:
            fmr, fnmr = percent(point.fmr, point.fmr_ci95), percent(point.fnmr, point.fnmr_ci95)
            yield f"{target}{point.threshold:<12.4f}{fmr:<28}{fnmr:<28}{point.false_matches:,}"
        else:
            yield f"{target}not supported: too few calibration identities"
    held_out = facts.fingerprint == description.dataset.fingerprint
    yield (
        f"measured on {facts.identities:,} identities{' that were not trained on' if held_out else ''}: "
        f"{facts.genuine_pairs:,} genuine and {facts.impostor_pairs:,} impostor pairs; EER {percent(facts.eer)}"
    )
    if not held_out:
        yield "These rates hold only if the encoder was trained on none of these images. That can't be checked here."
    yield ""
    if description.threshold_source == "calibration":
        yield f"threshold {description.threshold:.4f}, chosen for FMR {description.target_fmr:g}"
    else:
        yield f"threshold {description.threshold:.4f}, which is half the margin and not calibrated"
    yield f"FNMR {percent(rates.fnmr, rates.fnmr_ci95)}: genuine pairs called dissimilar"
    if rates.fmr is None and rates.fmr_observed is not None:
        yield (
            f"FMR not promised: too few identities. Observed on the {facts.identities} test identities: "
            f"{percent(rates.fmr_observed)} of impostor pairs called similar"
        )
    else:
        yield f"FMR {percent(rates.fmr, rates.fmr_ci95)}: impostor pairs called similar"
    if facts.cllr is not None:
        yield f"probabilities: cost {facts.cllr:.2f} (0 = perfect, 1 = they say nothing)"
    if facts.note:
        yield facts.note


def evaluation_lines(figures: dict[str, Any], source: str, note: str | None) -> Iterator[str]:
    """The figures of one evaluation; `source` is where the threshold comes from."""
    yield f"threshold         {figures['threshold']:.4f} (from {source})"
    yield f"FMR               {percent(figures['fmr'])} of {figures['impostor_pairs']:,} impostor pairs"
    if figures["same_group_fmr"] is not None:
        near = figures["same_group_impostor_pairs"]
        yield f"FMR, same group   {percent(figures['same_group_fmr'])} of {near:,}"
    yield f"FNMR              {percent(figures['fnmr'])} of {figures['genuine_pairs']:,} genuine pairs"
    yield f"EER               {percent(figures['eer'])}"
    if figures["same_group_eer"] is not None:
        yield f"EER, same group   {percent(figures['same_group_eer'])}"
    yield f"images            {figures['images']:,} ({figures['skipped']:,} other files skipped)"
    if note:
        yield note
