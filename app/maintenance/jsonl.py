"""A gallery as lines of JSON: the format that `export` writes and `import_export` reads.

The first line names the encoder of the embeddings, each line after it is one identity, and the last one counts them: a
file without it was cut off.
"""

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.errors import InvalidMetadata, InvalidName, UsageError
from app.gallery.names import check_metadata, check_name, printable_filename

FORMAT, VERSION = "diptych-gallery", 1
LONGEST_LINE = 2**30


def _plain(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that can't be printed")
    return text


class Head(BaseModel):
    """The first line."""

    model_config = ConfigDict(extra="forbid")

    format: str
    version: int
    model_id: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_plain)]
    embedding_dim: int = Field(ge=1, le=4096)
    checkpoint: Annotated[str, Field(max_length=4096), AfterValidator(_plain)]


class ExportedReference(BaseModel):
    """`embedding` is little-endian float32, `image` the kept image; both in base64."""

    model_config = ConfigDict(extra="forbid")

    reference_id: str = Field(pattern="^[0-9A-Za-z_-]{1,64}$")
    filename: Annotated[str, AfterValidator(printable_filename)]
    image_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created_at: Annotated[str, Field(max_length=64), AfterValidator(_plain)]
    embedding: str
    image: str | None = None


class ExportedIdentity(BaseModel):
    """A line."""

    model_config = ConfigDict(extra="forbid")

    collection: str
    identity: str
    metadata: dict[str, Any]
    references: list[ExportedReference]


class End(BaseModel):
    """The last line."""

    model_config = ConfigDict(extra="forbid")

    identities: int
    references: int


@dataclass
class Counts:
    """How many were written or read."""

    identities: int = 0
    references: int = 0
    held: int = 0
    without_image: int = 0  # written without their image; or read with an image that is not kept


def parse_line(file: Path, number: int, line: str) -> ExportedIdentity | End:
    """A line after the first. Raises `UsageError` that says what is wrong with it."""
    try:
        raw = json.loads(line)
        if "identity" not in raw:
            return End.model_validate(raw)
        entry = ExportedIdentity.model_validate(raw)
        check_name(entry.collection)
        check_name(entry.identity)
        check_metadata(entry.metadata)
    except ValidationError as problem:
        first = problem.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, TypeError, RecursionError, InvalidName, InvalidMetadata) as problem:
        what = str(problem)
    else:
        return entry
    raise UsageError(f"{file}, line {number:,} can't be read: {what}.")


def write_line(out: IO[str], document: BaseModel) -> None:
    """Write one line."""
    out.write(json.dumps(document.model_dump(exclude_none=True), ensure_ascii=False) + "\n")


@contextmanager
def jsonl_writer(plain: IO[bytes], compressed: bool) -> Iterator[IO[str]]:
    """To write lines to a file that is open, and stays open."""
    packed: Any = gzip.GzipFile(fileobj=plain, mode="wb", filename="") if compressed else plain
    text = io.TextIOWrapper(packed, encoding="utf-8", newline="\n")
    yield text
    text.flush()
    text.detach()
    if compressed:
        packed.close()


@contextmanager
def jsonl_reader(path: Path) -> Iterator[Iterator[tuple[int, str]]]:
    """The lines of an export with their numbers, from 1. Raises `UsageError` for what can't be read as lines."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:

        def lines() -> Iterator[tuple[int, str]]:
            for number in itertools.count(1):
                line = file.readline(LONGEST_LINE + 1)
                if len(line) > LONGEST_LINE:
                    raise UsageError(f"{path}, line {number:,} is too long for a line of an export.")
                if not line:
                    return
                yield number, line

        try:
            yield lines()
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as problem:
            raise UsageError(f"{path} can't be read: {problem}.") from None
