"""API keys: made by the command, sent with a request, waited for."""

import time
from pathlib import Path
from typing import Any

import httpx

from tests.service import Service, diptych


def made(data: Path, name: str, *options: str) -> dict[str, str]:
    """A new key, as the header that carries it."""
    done = diptych("keys", "create", name, "--data-dir", data, *options)
    assert done.returncode == 0, done.stderr
    return {"Authorization": f"Bearer {done.stdout.strip()}"}


def ask(service: Service, method: str, path: str, **options: Any) -> httpx.Response:
    """Without any header but those given."""
    return httpx.request(method, f"{service.client.base_url}{path}", timeout=30, **options)


def becomes(service: Service, headers: dict[str, str] | None, status: int) -> bool:
    """Whether it answers so within ten seconds."""
    deadline = time.monotonic() + 10
    while ask(service, "GET", "/collections", headers=headers).status_code != status:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
