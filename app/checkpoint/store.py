"""A checkpoint on disk: verified before it is loaded, sealed when it has been written."""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.checkpoint.format import DESCRIPTION, FORMAT_VERSION, HASHED, Checkpoint, Description
from app.checkpoint.ids import canonical_json
from app.errors import CheckpointError
from app.files import replacing
from app.image.policy import DECODING_POLICY

# `default` will be another one as soon as there is a checkpoint for photographs.
BUNDLED = {"omniglot": "omniglot", "default": "omniglot"}
GIVE = f"Give a directory that `diptych train` wrote, or a bundled name: {', '.join(sorted(BUNDLED))}."


def checkpoint_directory(name_or_directory: str) -> Path:
    """The directory of a checkpoint that is given as a path or as the name of a bundled one."""
    if name_or_directory in BUNDLED and not (Path(name_or_directory) / DESCRIPTION).exists():
        return Path(str(files("app") / "checkpoint" / "bundled" / BUNDLED[name_or_directory]))
    return Path(name_or_directory)


def load_checkpoint(name_or_directory: str | Path) -> Checkpoint:
    """Verify and open a checkpoint. Raises `CheckpointError` naming what is missing, altered or too new."""
    directory = checkpoint_directory(str(name_or_directory))
    path = directory / DESCRIPTION
    if not directory.is_dir():
        raise CheckpointError(f"There is no checkpoint {str(name_or_directory)!r}. {GIVE}")
    try:
        raw = json.loads(path.read_bytes())
        version = raw["format_version"]
    except FileNotFoundError:
        raise CheckpointError(f"{directory} is not a checkpoint: {DESCRIPTION} is missing. {GIVE}") from None
    except OSError as problem:
        raise CheckpointError(f"{path} can't be read: {problem.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is damaged: it is not the JSON that training writes.") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}; this version of Diptych reads version {FORMAT_VERSION}. "
            "A newer checkpoint needs a newer Diptych."
        )
    try:
        description = Description.model_validate(raw)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path} was altered: {where}: {first['msg']}.") from None
    if description.preprocessing.decoding_policy != DECODING_POLICY:
        raise CheckpointError(
            f"{path} needs decoding policy {description.preprocessing.decoding_policy}; this version of Diptych has "
            f"policy {DECODING_POLICY}."
        )
    if description.sha256.get(DESCRIPTION) != _sha256_of_description(raw):
        raise CheckpointError(f"{path} was altered: its sha256 is not the one in {DESCRIPTION}.")
    for name in HASHED:
        _verify(directory / name, description.sha256.get(name))
    return Checkpoint(directory=directory, description=description)


def seal_checkpoint(directory: Path, description: Description) -> Checkpoint:
    """Write the description, with the hashes of the files in `directory`, as the last file of a checkpoint.

    It is renamed into place, so a directory without a `checkpoint.json` is one whose writing was interrupted.
    """
    sha256 = {name: _sha256(directory / name) for name in HASHED}
    document = description.model_copy(update={"sha256": sha256}).model_dump(mode="json")
    document["sha256"][DESCRIPTION] = _sha256_of_description(document)
    with replacing(directory / DESCRIPTION) as file:
        file.write(json.dumps(document, indent=2).encode() + b"\n")
    return load_checkpoint(directory)


def _sha256_of_description(document: Mapping[str, Any]) -> str:
    others = {name: value for name, value in document.get("sha256", {}).items() if name != DESCRIPTION}
    return hashlib.sha256(canonical_json({**document, "sha256": others})).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing from the checkpoint.")
    try:
        found = _sha256(path)
    except OSError as problem:
        raise CheckpointError(f"{path} can't be read: {problem.strerror}.") from None
    if found != expected:
        raise CheckpointError(f"{path} was altered: its sha256 is not the one in {DESCRIPTION}.")
