"""API keys: made by the command, sent with a request, waited for."""

import time
from pathlib import Path
from typing import Any

import httpx

from tests.service import Requests, diptych


def made(data: Path, name: str, *options: str) -> dict[str, str]:
    """A new key, as the header that carries it."""
    done = diptych("keys", "create", name, "--data-dir", data, *options)
    assert done.returncode == 0, done.stderr
    return {"Authorization": f"Bearer {done.stdout.strip()}"}


def ask(service: Requests, method: str, path: str, **options: Any) -> httpx.Response:
    """Without the key that `service` sends with its requests."""
    return service.client.request(method, path, **options)


def becomes(service: Requests, headers: dict[str, str] | None, status: int) -> bool:
    """Whether it answers so within ten seconds."""
    deadline = time.monotonic() + 10
    while ask(service, "GET", "/collections", headers=headers).status_code != status:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
