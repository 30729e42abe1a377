"""Every error that Diptych names, in one tree, and what each becomes on the wire.

    DiptychError
    ├── RequestError         the caller's request, before any image is looked at      (routes)
    │   ├── MalformedRequest                                                      (multipart)
    │   ├── InvalidRequest, ConflictingFields, InvalidName, InvalidMetadata
    │   ├── RequestTooLarge, TooManyImages, UploadTooSlow, NotSupported
    │   ├── KeyRequired, KeyUnknown, NotAllowed, ForeignOrigin, UnknownHost           (guard)
    │   ├── TooManyRequests                                                       (limits)
    │   └── IdempotencyKeyReused
    ├── ImageError           one uploaded image                                       (image)
    │   ├── EmptyImage, UnsupportedFormat, DamagedImage
    │   └── TooManyBytes, TooManyPixels, BlankImage
    ├── GalleryError         what is enrolled                                         (gallery)
    │   ├── UnknownCollection, UnknownIdentity, UnknownReference, NoReferences
    │   └── IdentityExists, DeletedSince, ModelMismatch (GalleryMoved), NothingEnrolled
    ├── Unavailable          not the caller's fault, and worth another try            (pipeline, database)
    │   ├── Overloaded
    │   └── StorageUnavailable, GalleryDamaged
    ├── TrainingFailed       a training run that would write a bad checkpoint             (train, export)
    ├── MigrationBlocked     references without an image that another encoder could embed (migrate)
    └── UsageError           a mistake in a command or a setting; never on the wire   (cli)
        ├── CheckpointError  a checkpoint that is missing, altered or too new
        └── GalleryInUse     a gallery that another process has open

A caller sees an RFC 9457 problem document whose `code` never changes; the words may.
"""

from typing import Any, ClassVar


class DiptychError(Exception):
    """Base of the tree. `detail` says what is wrong, what is allowed and what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "The service failed"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class RequestError(DiptychError):
    status = 422
    code = "invalid_request"
    title = "A field has a value that is not allowed"


class InvalidRequest(RequestError):
    pass


class MalformedRequest(RequestError):
    status = 400
    code = "malformed_request"
    title = "Malformed request"


class ConflictingFields(RequestError):
    code = "conflicting_fields"
    title = "Two fields contradict each other"


class InvalidName(RequestError):
    code = "invalid_name"
    title = "A collection or identity name is not allowed"


class InvalidMetadata(RequestError):
    code = "invalid_metadata"
    title = "The metadata is not allowed"


class NotSupported(RequestError):
    code = "not_supported"
    title = "The calibration does not support this rate"


class RequestTooLarge(RequestError):
    status = 413
    code = "request_too_large"
    title = "The request body is too large"


class UploadTooSlow(RequestError):
    status = 408
    code = "upload_too_slow"
    title = "The request body did not arrive in time"


class TooManyImages(RequestError):
    status = 413
    code = "too_many_images"
    title = "Too many images in one request"


class IdempotencyKeyReused(RequestError):
    code = "idempotency_key_reused"
    title = "The Idempotency-Key was used for another request"


class KeyRequired(RequestError):
    status = 401
    code = "key_required"
    title = "An API key is required"


class KeyUnknown(RequestError):
    status = 401
    code = "key_unknown"
    title = "The API key is unknown or revoked"


class NotAllowed(RequestError):
    status = 403
    code = "not_allowed"
    title = "The API key does not allow this"


class ForeignOrigin(RequestError):
    status = 403
    code = "foreign_origin"
    title = "Web pages from this origin may not call the service"


class UnknownHost(RequestError):
    status = 421
    code = "unknown_host"
    title = "This host name is not allowed"


class TooManyRequests(RequestError):
    """`retry_after` in seconds."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests from this caller"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class ImageError(DiptychError):
    status = 422
    code = "invalid_image"
    title = "The image cannot be used"


class EmptyImage(ImageError):
    code = "empty_image"
    title = "The image is empty"


class UnsupportedFormat(ImageError):
    status = 415
    code = "unsupported_format"
    title = "The bytes are not an image in a supported format"


class DamagedImage(ImageError):
    code = "damaged_image"
    title = "The image is damaged"


class TooManyBytes(ImageError):
    status = 413
    code = "image_too_large"
    title = "The image has too many bytes"


class TooManyPixels(ImageError):
    status = 413
    code = "too_many_pixels"
    title = "The image has too many pixels"


class BlankImage(ImageError):
    code = "blank_image"
    title = "The image is blank"


class GalleryError(DiptychError):
    status = 404
    code = "unknown"
    title = "Not in the gallery"


class UnknownCollection(GalleryError):
    code = "unknown_collection"
    title = "There is no such collection"


class UnknownIdentity(GalleryError):
    code = "unknown_identity"
    title = "There is no such identity"


class UnknownReference(GalleryError):
    code = "unknown_reference"
    title = "There is no such reference"


class NoReferences(GalleryError):
    status = 409
    code = "no_references"
    title = "The identity has no references"


class NothingEnrolled(GalleryError):
    status = 422
    code = "nothing_enrolled"
    title = "Every image was rejected, so nothing was enrolled"


class DeletedSince(GalleryError):
    status = 410
    code = "deleted_since"
    title = "What this request enrolled has since been deleted"


class IdentityExists(GalleryError):
    status = 409
    code = "identity_exists"
    title = "Another identity has that name"


class ModelMismatch(GalleryError):
    status = 409
    code = "model_mismatch"
    title = "The gallery was enrolled with another encoder"


class GalleryMoved(ModelMismatch):
    """The gallery left this encoder for another, which the service is about to load."""

    status = 503
    code = "unavailable"
    title = "The service cannot answer at the moment"


class Unavailable(DiptychError):
    status = 503
    code = "unavailable"
    title = "The service cannot answer at the moment"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"
    title = "The gallery cannot be read or written at the moment"


class GalleryDamaged(StorageUnavailable):
    code = "gallery_damaged"
    title = "The gallery's database is damaged"


class Overloaded(Unavailable):
    code = "overloaded"
    title = "The service is busy"


class TrainingFailed(DiptychError):
    code = "training_failed"
    title = "Training failed"


class MigrationBlocked(DiptychError):
    code = "migration_blocked"
    title = "The gallery cannot be moved to this encoder"


class UsageError(DiptychError):
    code = "usage_error"
    title = "The command or its settings are wrong"


class CheckpointError(UsageError):
    code = "checkpoint_refused"
    title = "The checkpoint is refused"


class GalleryInUse(UsageError):
    code = "gallery_in_use"
    title = "The gallery is in use"
