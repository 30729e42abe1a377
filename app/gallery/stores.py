"""Where kept images are: a directory or a bucket. Each image has an id, which names its store and its gallery."""

import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import StorageUnavailable, UsageError
from app.files import partial_path, replacing, sync

ID = re.compile(r"(?P<store>file|s3)-(?P<gallery>[0-9a-f]{16})-[0-9a-f]{32}")


class Store(ABC):
    """Keeps images. Every method raises `StorageUnavailable` where the store can't be read or written."""

    name: str

    def new_id(self, gallery_id: str) -> str:
        return f"{self.name}-{gallery_id}-{uuid.uuid4().hex}"

    @abstractmethod
    def put(self, original_id: str, data: bytes) -> None:
        """Store an image, which is on disk when this returns."""

    @abstractmethod
    def get(self, original_id: str) -> bytes | None:
        """The bytes of an image; None if it is not there."""

    @abstractmethod
    def delete(self, original_ids: Iterable[str]) -> None:
        """Delete images. One that is not there is not an error."""

    @abstractmethod
    def ids(self, gallery_id: str) -> Iterator[str]:
        """The ids of this gallery's images, also of those whose writing was interrupted."""


class Directory(Store):
    """Files that only their owner can read, spread over 256 directories."""

    name = "file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, original_id: str) -> Path:
        """Raises `StorageUnavailable` for what is not an id: it could lead to any file."""
        if not ID.fullmatch(original_id):
            raise StorageUnavailable(
                f"The gallery's database refers to a kept image by {original_id[:80]!r}, which is not a valid ID."
            )
        return self.directory / original_id[-2:] / original_id

    def put(self, original_id: str, data: bytes) -> None:
        path = self.path(original_id)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(path, private=True) as file:
                file.write(data)
            for parent in (self.directory, self.directory.parent):
                sync(parent)
        except OSError as problem:
            raise StorageUnavailable(
                f"The image could not be kept ({problem.strerror}), so nothing was enrolled."
            ) from None

    def get(self, original_id: str) -> bytes | None:
        try:
            return self.path(original_id).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise StorageUnavailable(f"A kept image can't be read: {problem.strerror}.") from None

    def delete(self, original_ids: Iterable[str]) -> None:
        for original_id in original_ids:
            try:
                path = self.path(original_id)
                path.unlink(missing_ok=True)
                partial_path(path).unlink(missing_ok=True)
            except OSError as problem:
                raise StorageUnavailable(f"A kept image can't be deleted: {problem.strerror}.") from None

    def ids(self, gallery_id: str) -> Iterator[str]:
        for path in self.directory.glob(f"??/*{self.name}-{gallery_id}-*"):
            yield path.name.removeprefix(".")


class Bucket(Store):
    """Any S3-compatible bucket, by `obstore`; credentials and endpoint come from the usual AWS_... variables."""

    name = "s3"

    def __init__(self, url: str) -> None:
        import obstore  # slow to import, and few galleries have a bucket
        from obstore.store import S3Store

        self._obstore = obstore
        allow_http = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")
        try:
            self._bucket = S3Store.from_url(
                url, client_options={"allow_http": allow_http, "timeout": "20s"}, retry_config={"max_retries": 2}
            )
        except Exception as problem:  # noqa: BLE001  the library has no base class for its errors
            raise UsageError(f"DIPTYCH_KEEP_IMAGES can't be {url!r}: {str(problem).splitlines()[0]}") from None

    def put(self, original_id: str, data: bytes) -> None:
        with _bucket_errors("kept, so nothing was enrolled"):
            self._obstore.put(self._bucket, self._key(original_id), data)

    def get(self, original_id: str) -> bytes | None:
        with _bucket_errors("read"):
            try:
                return bytes(self._obstore.get(self._bucket, self._key(original_id)).bytes())
            except FileNotFoundError:
                return None
        raise AssertionError("unreachable")

    def delete(self, original_ids: Iterable[str]) -> None:
        keys = [self._key(original_id) for original_id in original_ids]
        if keys:
            with _bucket_errors("deleted"), suppress(FileNotFoundError):
                self._obstore.delete(self._bucket, keys)

    def ids(self, gallery_id: str) -> Iterator[str]:
        with _bucket_errors("listed"):
            for page in self._obstore.list(self._bucket, prefix=gallery_id):
                for entry in page:
                    yield entry["path"].rpartition("/")[2]

    @staticmethod
    def _key(original_id: str) -> str:
        """A folder for each gallery, so that one can be listed without the others."""
        return f"{original_id.split('-')[1]}/{original_id}"


@contextmanager
def _bucket_errors(action: str) -> Iterator[None]:
    """Raises `StorageUnavailable` for whatever a bucket refuses."""
    try:
        yield
    except StorageUnavailable:
        raise
    except Exception as problem:  # noqa: BLE001  the library has no base class for its errors
        first_line = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
        raise StorageUnavailable(
            f"An image in the bucket could not be {action}. Check DIPTYCH_KEEP_IMAGES, the AWS_... variables and the "
            f"bucket: {first_line}"
        ) from None
