"""Labelled embeddings to a checkpoint's calibration: thresholds, rates with intervals, likelihood ratios.

Thresholds and likelihood ratios are chosen on calibration identities. Rates and their intervals are measured on test
identities. There are curves for one reference, and for several where the identities have enough images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from app.arrays import Array, Floats, Floats32, Ints
from app.checkpoint.curves import ordered_by_references
from app.checkpoint.format import CalibrationFacts
from app.checkpoint.ids import compute_calibration_id
from training.calibration import bootstrap, likelihood, rates
from training.calibration.claims import count_claims, draw_claims
from training.calibration.galleries import spread_over_probes
from training.calibration.pairs import GRID, Labelled, PairCounts, count_pairs, sort_by_identity
from training.calibration.points import TARGETS, Unit, default_threshold, oddities, operating_points, units_of

# Each of these numbers of references gets its own curves, if half of the identities have at least one image more.
REFERENCES = range(1, 11)
FOLDS = 5
# At most this many identities, and images of each, are used: time grows with the square.
MANY_IDENTITIES, MANY_IMAGES = 1000, 30
# `calibration.npz` holds curves over these distances, steps of 0.001; intervals are drawn at every tenth.
CURVE = slice(None, None, 10)
INTERVALS = GRID[::100]


@dataclass(frozen=True)
class Sample:
    """Embeddings `[N, D]` of some identities, each image's identity and its group."""

    embeddings_ND: Floats32
    identity_N: Ints
    group_N: Ints

    @cached_property
    def sorted(self) -> Labelled:
        """Sorted by identity, the order in which pairs are counted."""
        return sort_by_identity(self.embeddings_ND, self.identity_N, self.group_N)

    @cached_property
    def counts(self) -> PairCounts:
        """Counts of all pairs."""
        return count_pairs(self.embeddings_ND, self.identity_N, self.group_N)

    def part(self, identities: Ints) -> "Sample":
        """The images of the given identities."""
        return self._of(np.flatnonzero(np.isin(self.identity_N, identities)))

    @property
    def small(self) -> "Sample":
        """At most MANY_IDENTITIES identities and MANY_IMAGES images of each, drawn at random."""
        rng = np.random.default_rng(0)
        identities = rng.permutation(np.unique(self.identity_N))[:MANY_IDENTITIES]
        order = rng.permutation(np.flatnonzero(np.isin(self.identity_N, identities)))
        order = order[np.argsort(self.identity_N[order], kind="stable")]
        _, starts, sizes = np.unique(self.identity_N[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(starts, sizes)
        return self._of(np.sort(order[rank < MANY_IMAGES]))

    def _of(self, index: Ints) -> "Sample":
        return Sample(self.embeddings_ND[index], self.identity_N[index], self.group_N[index])


@dataclass(frozen=True)
class Calibration:
    """`curves` goes into a checkpoint's `calibration.npz`, `fields` into its description."""

    curves: Mapping[str, Array]
    fields: dict[str, Any]


def calibrate(
    choose: Sample, measure: Sample, *, margin: float, target_fmr: float, unit: Unit, fingerprint: str
) -> Calibration:
    """Choose thresholds on one sample of identities and measure them on the other.

    `unit` says what is kept whole in one split and resampled for the intervals: identities, or groups of them.
    `fingerprint` names the data set.
    """
    choose, measure = choose.small, measure.small
    chosen, measured = choose.counts, measure.counts
    targets = sorted({*TARGETS, target_fmr}, reverse=True)
    points = operating_points(chosen, measured, measure.sorted, unit, targets)
    threshold, source, note = default_threshold(points, target_fmr, margin, chosen.identities)
    fitted = likelihood.choose_fit(folds(choose))
    named = calibration_curves(choose, measure, unit, likelihood.FITS[fitted])
    eer, same_group_eer = rates.equal_error_rates(measured)
    smallest = rates.supported_from(chosen)
    llr_G = likelihood.FITS[fitted](chosen)
    low, high = likelihood.llr_bounds(chosen, llr_G)
    llr_G = np.clip(llr_G, low, high)
    units = len(np.unique(units_of(measure.sorted, unit)))
    few = None
    if units < bootstrap.FEW:
        names = "groups" if unit == "group" else "identities"
        few = f"Only {units} {names} were measured, so intervals are " + (
            "wide." if units > 2 else f"missing: they need at least three {names}."
        )
    speaks = likelihood.has_both(chosen) and high > low
    return Calibration(
        named,
        {
            "calibration_id": compute_calibration_id(margin, threshold, points, named),
            "target_fmr": target_fmr,
            "threshold": threshold,
            "threshold_source": source,
            "operating_points": points,
            "calibration": CalibrationFacts(
                fingerprint=fingerprint,
                measured_on="test",
                identities=measured.identities,
                images=len(measure.identity_N),
                genuine_pairs=int(measured.genuine_count_G.sum()),
                impostor_pairs=int(measured.impostor_count_G.sum()),
                eer=eer,
                same_group_eer=same_group_eer,
                note=" ".join(filter(None, [note, *oddities(chosen, "calibration"), *oddities(measured, "test"), few]))
                or None,
                smallest_fmr=None if smallest is None else _fmr_at(chosen, smallest),
                intervals_over=unit,
                units=units,
                likelihood_ratio=fitted if speaks else None,
                llr_bounds=(low, high) if speaks else None,
                cllr=likelihood.cllr(measured, llr_G) if speaks else None,
                cllr_min=likelihood.cllr_min(measured) if speaks else None,
            ),
        },
    )


def calibration_curves(choose: Sample, measure: Sample, unit: Unit, fit: likelihood.Fit) -> Mapping[str, Array]:
    """What `calibration.npz` holds: curves over `distance`, named by rate, population and number of references R.

    `calibration_*_R` is of the calibration identities, which choose thresholds. `fmr_all_R` and `fnmr_all_R` were
    measured on test identities; `*_low_R` and `*_high_R` are the ends of their 95 % intervals. `llr_R` is the
    log-likelihood ratio. `*probe_fmr_R` and `*probe_concentration_R` say how the FMR spreads over probes
    (`app.checkpoint.matching.fpir`). `supported_R` holds the smallest distances at which the calibration identities
    and the test identities have enough false matches to promise a rate. NaN stands where there are no such pairs.
    """
    chosen, measured = choose.sorted, measure.sorted
    pairs = (choose.counts, measure.counts)
    unit_U = units_of(measured, unit)
    weights = bootstrap.draw_resamples(unit_U)
    named: dict[str, Floats] = {"distance": GRID[CURVE]}
    if pairs[1].same_group_count_G.any():
        named["fmr_same_group_1"] = pairs[1].same_group_fmr_G[CURVE]
    for references in REFERENCES:
        if references > 1 and min(np.median(part.sizes_U) for part in (chosen, measured)) <= references:
            break
        by, on = pairs if references == 1 else (count_claims(chosen, references), count_claims(measured, references))
        for prefix, counts in (("calibration_", by), ("", on)):
            unknown = np.full(len(named["distance"]), np.nan)
            fmr, fnmr = f"{prefix}fmr_all_{references}", f"{prefix}fnmr_all_{references}"
            named[fmr] = counts.fmr_G[CURVE] if counts.impostor_count_G.any() else unknown
            named[fnmr] = counts.fnmr_G[CURVE] if counts.genuine_count_G.any() else unknown
        ends = bootstrap.resample_rates(draw_claims(measured, references), INTERVALS, weights, unit_U)
        for rate, (low, high) in (("fmr", ends.fmr_interval), ("fnmr", ends.fnmr_interval)):
            rate_G = named[
                f"{rate}_all_{references}"
            ]  # so that it lies inside the interval between two points of the coarser grid, too
            named[f"{rate}_low_{references}"] = np.minimum(np.interp(GRID[CURVE], INTERVALS, low), rate_G)
            named[f"{rate}_high_{references}"] = np.maximum(np.interp(GRID[CURVE], INTERVALS, high), rate_G)
        llr_G = fit(by)
        named[f"llr_{references}"] = np.clip(llr_G, *likelihood.llr_bounds(by, llr_G))[CURVE]
        for prefix, data in (("calibration_", chosen), ("", measured)):
            probes = spread_over_probes(data, references, INTERVALS)
            named[f"{prefix}probe_fmr_{references}"] = np.interp(GRID[CURVE], INTERVALS, probes.mean_K)
            named[f"{prefix}probe_concentration_{references}"] = np.exp(
                np.interp(GRID[CURVE], INTERVALS, np.log(probes.concentration_K))
            )
        limits = (rates.supported_from(by), rates.supported_from(on))
        named[f"supported_{references}"] = np.array([np.inf if limit is None else limit for limit in limits])
    return {name: curve.astype(np.float32) for name, curve in ordered_by_references(named).items()}


def folds(sample: Sample, seed: int = 0) -> list[tuple[PairCounts, PairCounts]]:
    """Fifths of the identities. Of each: the pairs of the other identities, to fit on, and its own, to judge by."""
    identities = np.unique(sample.identity_N)
    order = np.random.default_rng(seed).permutation(identities)
    parts = [order[fold::FOLDS] for fold in range(FOLDS)]
    if min(len(part) for part in parts) < 2:
        return []
    return [(sample.part(np.setdiff1d(identities, part)).counts, sample.part(part).counts) for part in parts]


def _fmr_at(counts: PairCounts, threshold: float) -> float:
    return float(rates.rates_at(counts, threshold)["fmr"])
