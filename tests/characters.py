"""A gallery of three characters, what a search in it finds, and the images that are kept of it."""

import json
from pathlib import Path

from tests.files import drawings
from tests.service import Requests, diptych

ANGELIC, KANNADA, TIBETAN = (
    drawings(name) for name in ("Angelic/character01", "Kannada/character02", "Tibetan/character03")
)


def run(*arguments: str | Path, **environment: str) -> str:
    done = diptych(*arguments, "--quiet", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kept_files(data: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (data / "originals").rglob("*") if path.is_file())


def answers(service: Requests, **fields: str) -> list[tuple[str, float]]:
    """What a search for each of three drawings finds."""
    return [
        (match["identity"], round(match["distance"], 6))
        for path in (ANGELIC[5], KANNADA[5], TIBETAN[5])
        for match in service.search(path, **fields).json()["matches"]
    ]


def enroll_three(service: Requests) -> None:
    for name, images in (("angelic", ANGELIC), ("kannada", KANNADA), ("tibetan", TIBETAN)):
        assert service.enroll(name, *images[:3], metadata=json.dumps({"of": name})).status_code == 201
