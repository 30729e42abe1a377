"""What the endpoints take and answer, as the OpenAPI document shows it."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.checkpoint.format import CalibrationFacts, DatasetFacts, Runtime
from app.checkpoint.matching import Verdict
from app.checkpoint.thresholds import OperatingPoint, ThresholdSource
from app.gallery.names import check_metadata, check_name
from app.image.policy import Preprocessing

Name = Annotated[str, AfterValidator(check_name)]
CollectionPath = Annotated[Name, Path(description="Name of the collection.")]
IdentityPath = Annotated[Name, Path(description="Name of the identity.")]

SOURCE = (
    "`calibration`: chosen on images of identities that were not used in training; `margin`: half the margin, a guess, "
    "where the calibration supports no threshold; `request`: given by the caller."
)
MODEL_ID = "Identifies the encoder. Embeddings of different models cannot be compared."
CALIBRATION_ID = "Identifies the thresholds and error rates."


class Problem(BaseModel):
    """A problem document (RFC 9457). `code` never changes; the words may."""

    type: str
    title: str = Field(description="What kind of problem it is.")
    status: int
    detail: str = Field(description="What is wrong, what is allowed, and what to do.")
    code: str = Field(description="The kind of problem, for programs.")
    request_id: str | None = Field(description="The same as in the header X-Request-ID and in the service's log.")


class VerifyAnswer(BaseModel):
    """The verdict and the figures behind it. A figure that the calibration does not support is null."""

    verdict: Verdict = Field(
        description="`similar` if distance <= threshold; `inconclusive` up to `inconclusive_to`; else `dissimilar`."
    )
    distance: float = Field(description="Euclidean distance of the two embeddings, 0 to 2. Smaller is more alike.")
    threshold: float = Field(description="The largest distance that is `similar`.")
    threshold_source: ThresholdSource = Field(description=SOURCE)
    inconclusive_to: float | None = Field(
        description="The largest distance that is `inconclusive`; null if no verdict is."
    )
    margin: float = Field(description="The margin that the encoder was trained with, as a distance.")
    model_id: str = Field(description=MODEL_ID)
    calibration_id: str = Field(description=CALIBRATION_ID)
    target_fmr: float | None = Field(description="The false-match rate that the threshold was chosen for.")
    fmr: float | None = Field(
        description="Share of pairs of different identities that this threshold called similar, measured on identities "
        "not used in training."
    )
    fmr_ci95: tuple[float, float] | None = Field(description="95 % confidence interval of `fmr`.")
    fnmr: float | None = Field(
        description="Share of pairs of the same identity that this threshold called dissimilar, measured on identities "
        "not used in training."
    )
    fnmr_ci95: tuple[float, float] | None = Field(description="95 % confidence interval of `fnmr`.")
    log_likelihood_ratio: float | None = Field(
        description="Natural logarithm of how many times more likely this distance is if both images show the same "
        "thing than if they do not."
    )
    probability: float | None = Field(
        description="The probability that both images show the same thing, from `log_likelihood_ratio` and `prior`. It "
        "is independent of the threshold."
    )
    prior: float = Field(description="The probability before comparing the images, from the request.")
    percentile: float | None = Field(
        description="99.9 means that this pair is closer than 99.9 % of the pairs of different identities seen in "
        "calibration."
    )
    reference_id: str | None = Field(description="For a claim, the nearest reference of the identity; otherwise null.")
    references: int = Field(description="How many images `image_a` was compared with.")


class EnrolledReference(BaseModel):
    reference_id: str
    filename: str


class RejectedImage(BaseModel):
    filename: str
    code: str = Field(description="Why, as in a problem document.")
    detail: str


class EnrollAnswer(BaseModel):
    """What was enrolled and what was not."""

    collection: str
    identity: str
    references: list[EnrolledReference] = Field(description="One for each image that was enrolled.")
    rejected: list[RejectedImage] = Field(description="Images that could not be used.")


class Match(BaseModel):
    identity: str
    distance: float = Field(description="Distance to the nearest reference of this identity.")
    verdict: Verdict
    reference_id: str = Field(description="The nearest reference of this identity.")
    metadata: dict[str, Any]


class SearchAnswer(BaseModel):
    """The nearest identities, nearest first, whatever their verdicts."""

    identity: str | None = Field(description="The nearest identity if it is `similar`; null if nobody is.")
    matches: list[Match]
    gallery_size: int = Field(description="Identities searched.")
    references: int = Field(description="References searched.")
    threshold: float = Field(description="The largest distance that is `similar`.")
    threshold_source: ThresholdSource = Field(description=SOURCE)
    target_fpir: float | None = Field(description="The rate that the threshold was chosen for, from the request.")
    fpir: float | None = Field(
        description="Expected share of searches for somebody not enrolled that find somebody, at this gallery size."
    )
    expected_false_matches: float | None = Field(
        description="How many identities a search for somebody not enrolled finds on average."
    )
    model_id: str = Field(description=MODEL_ID)
    calibration_id: str = Field(description=CALIBRATION_ID)


class EmbedAnswer(BaseModel):
    """The embedding of an image. The example shows the first four of its numbers."""

    embedding: list[float] = Field(description="`embedding_dim` numbers of unit length, exact in float32.")
    model_id: str = Field(description=MODEL_ID)


class CollectionEntry(BaseModel):
    collection: str
    identities: int
    references: int
    created_at: str


class CollectionsAnswer(BaseModel):
    collections: list[CollectionEntry]


class IdentityEntry(BaseModel):
    identity: str
    metadata: dict[str, Any]
    references: int
    created_at: str


class IdentitiesAnswer(BaseModel):
    identities: list[IdentityEntry]
    next_cursor: str | None = Field(description="Send it as `cursor` to get the next page; null on the last page.")


class ReferenceEntry(BaseModel):
    reference_id: str
    filename: str
    created_at: str


class IdentityAnswer(BaseModel):
    collection: str
    identity: str
    metadata: dict[str, Any]
    created_at: str
    references: list[ReferenceEntry]


class IdentityChange(BaseModel):
    """A new name, metadata to merge, or both."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    identity: Name | None = Field(None, description="The new name.")
    metadata: Annotated[dict[str, Any], AfterValidator(check_metadata)] | None = Field(
        None, description="Merged into the metadata of the identity; null removes a key."
    )


class CheckpointAnswer(BaseModel):
    """What is loaded and how well it measured."""

    name: str
    model_id: str = Field(description=MODEL_ID)
    calibration_id: str = Field(description=CALIBRATION_ID)
    created_at: str
    embedding_dim: int
    preprocessing: Preprocessing
    margin: float
    threshold: float = Field(description="The default threshold of /verify with one reference.")
    threshold_source: ThresholdSource = Field(description=SOURCE)
    target_fmr: float = Field(description="The false-match rate that the default threshold was chosen for.")
    operating_points: list[OperatingPoint] = Field(description="Thresholds with the error rates measured for them.")
    calibration: CalibrationFacts
    dataset: DatasetFacts
    runtime: Runtime


class Health(BaseModel):
    status: Literal["ok"]


class CheckAnswer(BaseModel):
    ok: bool
    detail: str


class Readiness(BaseModel):
    status: Literal["ready"]
    checks: dict[str, CheckAnswer]
