"""Do the error rates that an answer names come true? On identities never used in training or calibration.

    python -m benchmarks.verdicts CHECKPOINT FOLDER [CALIBRATION MEASURING]

FOLDER holds identities that the checkpoint never saw. Again and again they are split at random: some choose the
threshold (CALIBRATION of them, 60), some measure it and give the interval (MEASURING, 119), and the rest, four times
as many as measured, show what happens. The same is asked of likelihood ratios, of searches, and of whole groups that
calibration knew nothing of.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from app.arrays import Floats, Ints
from app.checkpoint.matching import fpir
from app.checkpoint.store import load_checkpoint
from training.calibration import bootstrap, likelihood, rates
from training.calibration.calibrate import INTERVALS, Sample, folds
from training.calibration.claims import RULES, count_claims, draw_claims
from training.calibration.galleries import spread_over_probes
from training.calibration.pairs import GRID, grid_index
from training.data.dataset import read_dataset
from training.embed import embed_images, open_encoder

SPLITS, HALVES, SEARCHES, GROUP_SPLITS = 200, 20, 40, 40
TARGETS = (0.01, 0.001)
EDGES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
TARGET_FPIR, GALLERIES = 0.1, (10, 100, 400)


@dataclass(frozen=True)
class Pairs:
    """The share of image pairs of each pair of identities that a threshold calls similar, without counting again."""

    bins_I: NDArray[np.uint16]  # the grid's bin of every image pair, one pair of identities after the other
    starts_P: Ints
    first_P: Ints
    second_P: Ints
    identities: int

    @classmethod
    def of(cls, sample: Sample) -> "Pairs":
        data = sample.sorted
        parts: dict[tuple[int, int], list[NDArray[np.uint16]]] = {}
        for rows in data.rows():
            ends = np.cumsum(data.sizes_U[rows.identity + 1 :])[:-1]
            index = grid_index(rows.impostors).astype(np.uint16)
            for offset, part in enumerate(np.split(index, ends, axis=1) if index.size else []):
                parts.setdefault((rows.identity, rows.identity + 1 + offset), []).append(part.ravel())
        joined = [np.concatenate(own) for own in parts.values()]
        first_P, second_P = np.array(list(parts)).T
        starts_P = np.concatenate([[0], np.cumsum([len(own) for own in joined])[:-1]])
        return cls(np.concatenate(joined), starts_P, first_P, second_P, len(data.sizes_U))

    def shares(self, threshold: float) -> Floats:
        """`[U, U]`, symmetric, zero on the diagonal."""
        similar_I = self.bins_I <= grid_index(np.array([threshold]))[0]
        sizes_P = np.diff(np.append(self.starts_P, len(similar_I)))
        square = np.zeros((self.identities, self.identities))
        square[self.first_P, self.second_P] = np.add.reduceat(similar_I, self.starts_P, dtype=np.int64) / sizes_P
        return square + square.T


def fmr(shares_UU: Floats, members: Ints) -> float:
    """Of the pairs among some identities, each pair of identities weighing the same."""
    return float(shares_UU[np.ix_(members, members)].sum() / (len(members) * (len(members) - 1)))


def coverage(sample: Sample, pairs: Pairs, choosing: int, measuring: int) -> None:
    count = pairs.identities
    found: dict[float, list[tuple[float, float, float]]] = {target: [] for target in TARGETS}
    refused = dict.fromkeys(TARGETS, 0)
    for seed in tqdm(range(SPLITS), desc="splits", disable=None):
        order = np.random.default_rng(seed).permutation(count)
        choose, measure, rest = np.split(order, [choosing, choosing + measuring])
        chosen, measured = sample.part(choose).counts, sample.part(np.sort(measure))
        for target in TARGETS:
            threshold = rates.threshold_at_fmr(chosen.fmr_G, target)
            if threshold is None or not (
                rates.is_supported(chosen, threshold) and rates.is_supported(measured.counts, threshold)
            ):
                refused[target] += 1
                continue
            unit_U = np.arange(measuring)
            weights = bootstrap.draw_resamples(unit_U, seed=seed)
            resampled = bootstrap.resample_rates(draw_claims(measured.sorted), np.array([threshold]), weights, unit_U)
            (low,), (high,) = resampled.fmr_interval
            found[target].append((float(low), float(high), fmr(pairs.shares(threshold), rest)))
    print(
        f"\n{SPLITS} splits: {choosing} identities choose, {measuring} measure, {count - choosing - measuring} others"
    )
    print("\n| target FMR | refused | inside its interval | below | above | high / low, median | at most 3 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for target, rows in found.items():
        if not rows:
            print(f"| {target:g} | {refused[target]} | | | | | |")
            continue
        low, high, real = np.array(rows).T
        with np.errstate(divide="ignore"):
            width = high / low
        print(
            f"| {target:g} | {refused[target]} | {np.mean((low <= real) & (real <= high)):.1%} "
            f"| {np.mean(real < low):.1%} | {np.mean(real > high):.1%} | {np.median(width):.2f} "
            f"| {np.mean(width <= 3):.0%} |",
            flush=True,
        )


def likelihoods(sample: Sample, identities: int) -> None:
    print("\nLog-likelihood ratios, fitted on one half of the identities, judged on the other:\n")
    print(f"| fit, of {HALVES} halves | Cllr, mean | Cllr_min, mean | largest difference |\n| --- | --- | --- | --- |")
    shown: list[tuple[Floats, Floats, Floats]] = []
    costs: list[tuple[str, float, float]] = []
    for seed in range(HALVES):
        order = np.random.default_rng(seed).permutation(identities)
        learn, judge = sample.part(order[: identities // 2]), sample.part(order[identities // 2 :]).counts
        name = likelihood.choose_fit(folds(learn))
        counts = learn.counts
        llr_G = likelihood.FITS[name](counts)
        llr_G = np.clip(llr_G, *likelihood.llr_bounds(counts, llr_G))
        cost, least = likelihood.cllr(judge, llr_G), likelihood.cllr_min(judge)
        if cost is not None and least is not None:
            costs.append((name, cost, least))
        shown.append(by_bin(judge.genuine_weight_G, judge.impostor_weight_G, llr_G))
    named = Counter(name for name, _, _ in costs).most_common()
    fits = ", ".join(f"{name} {count}" for name, count in named)
    mean, best = np.mean([cost for _, cost, _ in costs]), np.mean([least for _, _, least in costs])
    largest = max(cost - least for _, cost, least in costs)
    print(f"| {fits} | {mean:.4f} | {best:.4f} | {largest:.4f} |")
    all_K, genuine_K, said_K = np.mean(np.array(shown), axis=0)
    print("\nProbability at prior 0.5, mean of all halves:\n")
    print("| given | said, mean | came true | off, points | of all pairs |")
    print("| --- | --- | --- | --- | --- |")
    for low, high, said, came, of_all in zip(EDGES[:-1], EDGES[1:], said_K, genuine_K, all_K, strict=True):
        if not of_all:
            continue
        print(
            f"| {low:.2f} to {high:.2f} | {said / of_all:.1%} | {came / of_all:.1%} "
            f"| {100 * (came - said) / of_all:+.1f} | {of_all:.2%} |"
        )


def by_bin(genuine_G: Floats, impostor_G: Floats, llr_G: Floats) -> tuple[Floats, Floats, Floats]:
    probability_G = 1 / (1 + np.exp(-llr_G))
    bin_G = np.clip(np.searchsorted(EDGES, probability_G, side="right") - 1, 0, len(EDGES) - 2)
    both_G = (genuine_G + impostor_G) / 2
    both, genuine, said = (
        np.bincount(bin_G, weight_G, len(EDGES) - 1) for weight_G in (both_G, genuine_G / 2, both_G * probability_G)
    )
    return both, genuine, said


def rules(sample: Sample, identities: int) -> None:
    """Of several references, should the nearest decide, or their mean embedding?"""
    order = np.random.default_rng(0).permutation(identities)
    learn, judge = (sample.part(part).sorted for part in np.split(order, [identities // 5]))
    print(f"\nSeveral references: thresholds from {identities // 5} identities, FNMR on the others:\n")
    print("| references | FMR 0.01, nearest | mean | FMR 0.001, nearest | mean |\n| --- | --- | --- | --- | --- |")
    for references in (1, 2, 5, 10):
        if np.median(learn.sizes_U) <= references:
            break
        found = []
        for rule in RULES:
            chosen, measured = (count_claims(part, references, rule) for part in (learn, judge))
            thresholds = [rates.threshold_at_fmr(chosen.fmr_G, target) for target in TARGETS]
            found.append([None if t is None else rates.rates_at(measured, t)["fnmr"] for t in thresholds])
        cells = ["-" if rate is None else f"{rate:.1%}" for pair in zip(*found, strict=True) for rate in pair]
        print(f"| {references} | {' | '.join(cells)} |", flush=True)


def searches(sample: Sample, identities: int) -> None:
    galleries = [size for size in GALLERIES if size <= 0.7 * identities]
    if not galleries:
        return
    learning = (identities - max(galleries)) // 2
    print(f"\nSearches for strangers, target FPIR {TARGET_FPIR:g}; {learning} calibrate, {SEARCHES} splits:\n")
    print("| gallery | FPIR | lowest to highest | from the mean FMR | at the threshold for FMR 0.01 |")
    print("| --- | --- | --- | --- | --- |")
    for size in galleries:
        rows = []
        for seed in range(SEARCHES):
            rng = np.random.default_rng(seed)
            order = rng.permutation(identities)
            learn, probes = sample.part(order[:learning]), sample.part(order[learning + max(galleries) :])
            own = [np.flatnonzero(sample.identity_N == identity) for identity in order[learning : learning + size]]
            references = sample.embeddings_ND[[int(rng.choice(images)) for images in own]].astype(np.float64)
            square = 2 - 2 * probes.embeddings_ND.astype(np.float64) @ references.T
            nearest = np.sqrt(np.maximum(square.min(axis=1), 0))
            spread_K, fmr_G = spread_over_probes(learn.sorted, 1, INTERVALS), learn.counts.fmr_G
            model = np.maximum.accumulate(fpir(spread_K.mean_K, spread_K.concentration_K, size))
            threshold = float(np.interp(TARGET_FPIR, model, INTERVALS))
            average = GRID[np.searchsorted(fmr_G, 1 - (1 - TARGET_FPIR) ** (1 / size), side="right") - 1]
            single = GRID[np.searchsorted(fmr_G, 0.01, side="right") - 1]
            rows.append([float((nearest <= at).mean()) for at in (threshold, average, single)])
        ours, naive, one = np.array(rows).T
        print(
            f"| {size} | {ours.mean():.1%} | {ours.min():.1%} to {ours.max():.1%} | {naive.mean():.1%} "
            f"| {one.mean():.1%} |",
            flush=True,
        )


def strangers(sample: Sample, pairs: Pairs) -> None:
    """Whole groups that calibration knew nothing of: how far does the claim bend?"""
    data = sample.sorted
    groups = np.unique(data.group_U)
    if len(groups) < 15:
        return
    third = len(groups) // 3
    rest = len(groups) - 2 * third
    print(f"\nWhole groups kept out: {third} choose, {third} measure, {rest} others, {GROUP_SPLITS} splits\n")
    print("| target FMR | realised, median | 5 to 95 % | inside, over identities | over groups | high / low, groups |")
    print("| --- | --- | --- | --- | --- | --- |")
    for target in TARGETS:
        rows = []
        for seed in range(GROUP_SPLITS):
            order = np.random.default_rng(seed).permutation(groups)
            choose, measure, unseen = (
                np.flatnonzero(np.isin(data.group_U, part)) for part in np.split(order, [third, 2 * third])
            )
            chosen, measured = sample.part(choose).counts, sample.part(measure).sorted
            threshold = rates.threshold_at_fmr(chosen.fmr_G, target)
            if threshold is None or not (
                rates.is_supported(chosen, threshold) and rates.is_supported(sample.part(measure).counts, threshold)
            ):
                continue
            real = fmr(pairs.shares(threshold), unseen)
            row = [real]
            for unit_U in (np.arange(len(measure)), measured.group_U):
                weights = bootstrap.draw_resamples(unit_U, 400, seed)
                found = bootstrap.resample_rates(draw_claims(measured), np.array([threshold]), weights, unit_U)
                (low,), (high,) = found.fmr_interval
                row += [float(low <= real <= high), float(high / max(low, 1e-9))]
            rows.append(row)
        if not rows:
            continue
        real, by_identity, _, by_group, width = np.array(rows).T
        print(
            f"| {target:g} | {np.median(real):.2%} | {np.quantile(real, 0.05):.2%} to {np.quantile(real, 0.95):.2%} "
            f"| {by_identity.mean():.0%} | {by_group.mean():.0%} | {np.median(width):.1f} |",
            flush=True,
        )


def main(name: str, root: Path, choosing: int = 60, measuring: int = 119) -> None:
    encoder = open_encoder(load_checkpoint(name))
    dataset = read_dataset(root, encoder.preprocessing, progress=False)
    embeddings_ND = embed_images(encoder, dataset.images_NHWC, progress=False)
    if choosing + measuring >= len(dataset.identities):
        sys.exit(f"{root} holds {len(dataset.identities)} identities: give smaller numbers of them.")
    sample = Sample(embeddings_ND, dataset.identity_N, dataset.group_N)
    pairs = Pairs.of(sample)
    coverage(sample, pairs, choosing, measuring)
    likelihoods(sample, pairs.identities)
    rules(sample, pairs.identities)
    searches(sample, pairs.identities)
    strangers(sample, pairs)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 5):
        sys.exit("usage: python -m benchmarks.verdicts CHECKPOINT FOLDER [CALIBRATION MEASURING]")
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
