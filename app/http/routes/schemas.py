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
COLLECTION = "Name of the collection."
IDENTITY = "Name of the identity."
METADATA = "Metadata of the identity, as it was given."
REFERENCE_ID = "ID of the reference."
FILENAME = "File name of the image, as it was sent."
CREATED_AT = "When it was created: date and time in UTC (ISO 8601)."
REFERENCES = "Number of its references."


class Problem(BaseModel):
    """A problem document (RFC 9457). `code` never changes; the words may."""

    type: str = Field(description="Always `about:blank`: `code` tells problems apart.")
    title: str = Field(description="What kind of problem it is.")
    status: int = Field(description="The HTTP status.")
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
        description="The largest distance that is `inconclusive`; null if no distance is."
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
        "does not depend on the threshold."
    )
    prior: float = Field(description="The probability before comparing the images, from the request.")
    percentile: float | None = Field(
        description="99.9 means that this pair is closer than 99.9 % of the pairs of different identities seen in "
        "calibration."
    )
    reference_id: str | None = Field(description="For a claim, the nearest reference of the identity; otherwise null.")
    references: int = Field(description="How many images `image_a` was compared with.")


class EnrolledReference(BaseModel):
    reference_id: str = Field(description=REFERENCE_ID)
    filename: str = Field(description=FILENAME)


class RejectedImage(BaseModel):
    filename: str = Field(description=FILENAME)
    code: str = Field(description="Why the image was rejected: an error code, as in a problem document.")
    detail: str = Field(description="What is wrong with the image, and what to do.")


class EnrollAnswer(BaseModel):
    """What was enrolled and what was not."""

    collection: str = Field(description=COLLECTION)
    identity: str = Field(description=IDENTITY)
    references: list[EnrolledReference] = Field(description="One for each image that was enrolled.")
    rejected: list[RejectedImage] = Field(description="Images that could not be used.")


class Match(BaseModel):
    identity: str = Field(description=IDENTITY)
    distance: float = Field(description="Distance to the nearest reference of this identity.")
    verdict: Verdict = Field(description="`similar` if distance <= threshold; else `dissimilar`.")
    reference_id: str = Field(description="The nearest reference of this identity.")
    metadata: dict[str, Any] = Field(description=METADATA)


class SearchAnswer(BaseModel):
    """The nearest identities, nearest first, whatever their verdicts."""

    identity: str | None = Field(description="The nearest identity if it is `similar`; otherwise null.")
    matches: list[Match] = Field(description="At most `top_k` identities, nearest first.")
    gallery_size: int = Field(description="Number of identities searched.")
    references: int = Field(description="Number of references searched.")
    threshold: float = Field(description="The largest distance that is `similar`.")
    threshold_source: ThresholdSource = Field(description=SOURCE)
    target_fpir: float | None = Field(description="The rate that the threshold was chosen for, from the request.")
    fpir: float | None = Field(
        description="Expected share of searches for something that is not enrolled that still find an identity, in a "
        "gallery of this size."
    )
    expected_false_matches: float | None = Field(
        description="Average number of identities that a search for something that is not enrolled finds."
    )
    model_id: str = Field(description=MODEL_ID)
    calibration_id: str = Field(description=CALIBRATION_ID)


class EmbedAnswer(BaseModel):
    """The embedding of an image. The example shows the first four of its numbers."""

    embedding: list[float] = Field(description="`embedding_dim` numbers of unit length, exact in float32.")
    model_id: str = Field(description=MODEL_ID)


class CollectionEntry(BaseModel):
    collection: str = Field(description=COLLECTION)
    identities: int = Field(description="Number of its identities.")
    references: int = Field(description=REFERENCES)
    created_at: str = Field(description=CREATED_AT)


class CollectionsAnswer(BaseModel):
    collections: list[CollectionEntry] = Field(description="The collections, by name.")


class IdentityEntry(BaseModel):
    identity: str = Field(description=IDENTITY)
    metadata: dict[str, Any] = Field(description=METADATA)
    references: int = Field(description=REFERENCES)
    created_at: str = Field(description=CREATED_AT)


class IdentitiesAnswer(BaseModel):
    identities: list[IdentityEntry] = Field(description="One page of the identities.")
    next_cursor: str | None = Field(description="Send it as `cursor` to get the next page; null on the last page.")


class ReferenceEntry(BaseModel):
    reference_id: str = Field(description=REFERENCE_ID)
    filename: str = Field(description=FILENAME)
    created_at: str = Field(description=CREATED_AT)


class IdentityAnswer(BaseModel):
    collection: str = Field(description=COLLECTION)
    identity: str = Field(description=IDENTITY)
    metadata: dict[str, Any] = Field(description=METADATA)
    created_at: str = Field(description=CREATED_AT)
    references: list[ReferenceEntry] = Field(description="The references of the identity.")


class IdentityChange(BaseModel):
    """A new name, metadata to merge, or both."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    identity: Name | None = Field(None, description="The new name.")
    metadata: Annotated[dict[str, Any], AfterValidator(check_metadata)] | None = Field(
        None, description="Merged into the metadata of the identity; null removes a key."
    )


class CheckpointAnswer(BaseModel):
    """The checkpoint that is loaded, and the error rates measured for it."""

    name: str = Field(description="Name of the checkpoint.")
    model_id: str = Field(description=MODEL_ID)
    calibration_id: str = Field(description=CALIBRATION_ID)
    created_at: str = Field(description=CREATED_AT)
    embedding_dim: int = Field(description="Number of values in an embedding.")
    preprocessing: Preprocessing = Field(description="What an image becomes before it is embedded.")
    margin: float = Field(description="The margin that the encoder was trained with, as a distance.")
    threshold: float = Field(description="The default threshold of /verify with one reference.")
    threshold_source: ThresholdSource = Field(description=SOURCE)
    target_fmr: float = Field(description="The false-match rate that the default threshold was chosen for.")
    operating_points: list[OperatingPoint] = Field(description="Thresholds with the error rates measured for them.")
    calibration: CalibrationFacts = Field(description="What the error rates were measured on.")
    dataset: DatasetFacts = Field(description="The images of the training run and how they were split.")
    runtime: Runtime = Field(description="The runtime that computes the embeddings.")


class Health(BaseModel):
    status: Literal["ok"] = Field(description="`ok` while the process answers.")


class CheckAnswer(BaseModel):
    ok: bool = Field(description="Whether the check passed.")
    detail: str = Field(description="What was found.")


class Readiness(BaseModel):
    status: Literal["ready"] = Field(description="`ready` if every check passed.")
    checks: dict[str, CheckAnswer] = Field(description="Each check by name.")
