"""Distance to verdict: what a caller asked for, and the answer with every figure behind it.

    distance, calibration, wish -> judge        -> Judgement          (two images, or a claimed identity)
    distances, calibration, wish -> judge_search -> SearchJudgement   (the nearest identities of a gallery)

Both are pure functions. Figures are exact here; `app.http.rounding` rounds them when they leave the service.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.checkpoint.calibration import Calibration, probability
from app.checkpoint.matching import Verdict, decide
from app.checkpoint.searches import search_rates, threshold_for_search
from app.checkpoint.thresholds import Threshold
from app.errors import ConflictingFields


@dataclass(frozen=True)
class Wish:
    """What the caller of a comparison asked for; None leaves the choice to the checkpoint.

    `usual_inconclusive_fmr` is the service's setting, used where the request has no `inconclusive_fmr` of its own.
    Raises `ConflictingFields` where both `threshold` and `target_fmr` are given.
    """

    threshold: float | None = None
    target_fmr: float | None = None
    inconclusive_fmr: float | None = None
    usual_inconclusive_fmr: float | None = None
    prior: float = 0.5

    def __post_init__(self) -> None:
        if self.threshold is not None and self.target_fmr is not None:
            raise ConflictingFields("Give `threshold` or `target_fmr`, not both.")


@dataclass(frozen=True)
class Judgement:
    """A verdict and its figures. A figure that the calibration does not support is None.

    `fmr` and `fnmr` belong to the threshold; `log_likelihood_ratio` (natural logarithm), `probability` (that both
    images show the same thing) and `percentile` (0 to 100) belong to this distance.
    """

    verdict: Verdict
    distance: float
    references: int
    threshold: Threshold
    inconclusive_to: float | None
    fmr: float | None
    fmr_ci95: tuple[float, float] | None
    fnmr: float | None
    fnmr_ci95: tuple[float, float] | None
    log_likelihood_ratio: float | None
    probability: float | None
    percentile: float | None
    prior: float

    @property
    def target_fmr(self) -> float | None:
        """The false-match rate that the threshold was chosen for."""
        return self.threshold.point.target_fmr if self.threshold.point else None


def judge(distance: float, calibration: Calibration, wish: Wish, references: int = 1) -> Judgement:
    """The verdict on the distance to the nearest of `references` images.

    Raises `NotSupported` where the calibration cannot promise the rate asked for, and `ConflictingFields` where
    `inconclusive_fmr` leaves no distances between the two thresholds.
    """
    threshold = calibration.choose(references, threshold=wish.threshold, target_fmr=wish.target_fmr)
    if wish.inconclusive_fmr is None:
        inconclusive_to = calibration.usual_band(threshold, wish.usual_inconclusive_fmr, references)
    else:
        inconclusive_to = calibration.band(threshold, wish.inconclusive_fmr, references)
    figures = calibration.figures(distance, threshold, references)
    ratio = figures.log_likelihood_ratio
    return Judgement(
        verdict=decide(distance, threshold.value, inconclusive_to),
        distance=distance,
        references=references,
        threshold=threshold,
        inconclusive_to=inconclusive_to,
        fmr=figures.fmr,
        fmr_ci95=figures.fmr_ci95,
        fnmr=figures.fnmr,
        fnmr_ci95=figures.fnmr_ci95,
        log_likelihood_ratio=ratio,
        probability=None if ratio is None else probability(ratio, wish.prior),
        percentile=figures.percentile,
        prior=wish.prior,
    )


@dataclass(frozen=True)
class SearchWish:
    """What the caller of a search asked for. Raises `ConflictingFields` for `threshold` together with `target_fpir`."""

    threshold: float | None = None
    target_fpir: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and self.target_fpir is not None:
            raise ConflictingFields("Give `threshold` or `target_fpir`, not both.")


@dataclass(frozen=True)
class SearchJudgement:
    """The verdict on each distance, in order, and the error rates of such a search; None where not supported."""

    verdicts: tuple[Verdict, ...]
    threshold: Threshold
    target_fpir: float | None
    fpir: float | None
    expected_false_matches: float | None


def judge_search(
    distances: Sequence[float], calibration: Calibration, wish: SearchWish, gallery_size: int, references: int
) -> SearchJudgement:
    """The verdicts on the nearest identities of a gallery of `gallery_size` identities with `references` images in all.

    Raises `NotSupported` where the calibration cannot promise `target_fpir` for a gallery of this size.
    """
    each = max(1, -(-references // max(1, gallery_size)))  # references of one identity, rounded up
    if wish.target_fpir is None:
        threshold = calibration.choose(each, threshold=wish.threshold)
    else:
        threshold = threshold_for_search(calibration, wish.target_fpir, gallery_size, each)
    fpir, false_matches = search_rates(calibration, threshold.value, gallery_size, each)
    return SearchJudgement(
        verdicts=tuple(decide(distance, threshold.value) for distance in distances),
        threshold=threshold,
        target_fpir=wish.target_fpir,
        fpir=fpir,
        expected_false_matches=false_matches,
    )
