"""What the endpoints take and answer, as the OpenAPI document shows it."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.checkpoint.format import CalibrationFacts, DatasetFacts, Runtime
from app.checkpoint.matching import OperatingPoint, ThresholdSource, Verdict
from app.gallery.names import check_metadata, check_name
from app.image.policy import Preprocessing

Name = Annotated[str, AfterValidator(check_name)]
CollectionPath = Annotated[Name, Path(description="Collection.")]
IdentityPath = Annotated[Name, Path(description="Identity.")]


class Problem(BaseModel):
    """RFC 9457. `code` is stable; the words are not."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None


class VerifyAnswer(BaseModel):
    """The verdict and what it rests on. A figure that the calibration does not support is null."""

    verdict: Verdict
    distance: float = Field(description="Euclidean distance of the two embeddings, 0 to 2; smaller is more alike.")
    threshold: float = Field(description="`similar` means distance <= threshold.")
    threshold_source: ThresholdSource
    inconclusive_to: float | None = Field(description="Up to this distance it is `inconclusive`; null: no such band.")
    margin: float
    model_id: str
    calibration_id: str
    target_fmr: float | None = Field(description="False-match rate that the threshold was chosen for.")
    fmr: float | None = Field(description="False-match rate measured for it on unseen identities.")
    fmr_ci95: tuple[float, float] | None = Field(description="95 % interval, from drawing anew who was measured.")
    fnmr: float | None = Field(description="False-non-match rate measured for it on unseen identities.")
    fnmr_ci95: tuple[float, float] | None = Field(description="95 % interval.")
    log_likelihood_ratio: float | None = Field(
        description="Natural logarithm of how many times likelier this distance is for the same thing than for two."
    )
    probability: float | None = Field(description="Of the same thing, given `prior` and that ratio.")
    prior: float = Field(description="The probability before looking, as asked or 0.5.")
    percentile: float | None = Field(description="Closer than this percentage of impostor pairs seen in calibration.")
    reference_id: str | None = Field(description="For a claimed identity, the nearest of its references.")
    references: int = Field(description="Images that `image_a` was compared with.")


class EnrolledReference(BaseModel):
    reference_id: str
    filename: str


class RejectedImage(BaseModel):
    filename: str
    code: str
    detail: str


class EnrollAnswer(BaseModel):
    collection: str
    identity: str
    references: list[EnrolledReference]
    rejected: list[RejectedImage]


class Match(BaseModel):
    identity: str
    distance: float
    verdict: Verdict
    reference_id: str
    metadata: dict[str, Any]


class SearchAnswer(BaseModel):
    """The nearest identities, nearest first, whatever their verdicts."""

    identity: str | None = Field(description="Whom the image shows: the nearest if `similar`; null: nobody known.")
    matches: list[Match]
    gallery_size: int = Field(description="Identities searched.")
    references: int = Field(description="References searched.")
    threshold: float
    threshold_source: ThresholdSource
    target_fpir: float | None = Field(description="The rate that the threshold was chosen for, in this gallery.")
    fpir: float | None = Field(
        description="Expected share of searches for somebody not enrolled that find somebody in a gallery of this size."
    )
    expected_false_matches: float | None = Field(description="How many identities such a search finds on average.")
    model_id: str
    calibration_id: str


class EmbedAnswer(BaseModel):
    embedding: list[float]
    model_id: str


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
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last.")


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
    """A new name, metadata to merge (null removes a key), or both."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    identity: Name | None = None
    metadata: Annotated[dict[str, Any], AfterValidator(check_metadata)] | None = None


class CheckpointAnswer(BaseModel):
    """What is loaded and how well it measured."""

    name: str
    model_id: str
    calibration_id: str
    created_at: str
    embedding_dim: int
    preprocessing: Preprocessing
    margin: float
    threshold: float
    threshold_source: ThresholdSource
    target_fmr: float
    operating_points: list[OperatingPoint]
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
