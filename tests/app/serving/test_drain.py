"""SIGTERM: what is under way is answered, no more is taken, and nothing that was acknowledged is lost."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.files import EVALUATION, drawings
from tests.service import Serve, Service, assert_problem, gauge, wait_for

DRAWINGS = sorted(EVALUATION.rglob("*.png"))
A = drawings("Angelic/character01")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Drawings of some 30 megapixels, which take a good part of a second each to decode."""
    folder = tmp_path_factory.mktemp("large")
    for number, path in enumerate(A):
        Image.open(path).convert("L").resize((5500, 5500)).save(folder / f"{number}.png", compress_level=1)
    return sorted(folder.glob("*.png"))


def held(service: Service) -> dict[str, int]:
    """References of each identity."""
    page = service.client.get("/collections/default/identities?limit=1000").json().get("identities", [])
    return {entry["identity"]: entry["references"] for entry in page}


def accepts(service: Service) -> bool:
    """Whether a new connection is taken."""
    try:
        socket.create_connection(("127.0.0.1", service.port), timeout=5).close()
    except ConnectionError:  # refused; or reset, while the port was being closed
        return False
    return True


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_under_way_at_sigterm_is_answered_and_kept(serve: Serve, large: list[Path], workers: str) -> None:
    """Slow enrolments in hand and others coming: each ends in 201, in 503, or in a connection that was closed before
    it was answered; and all that were answered are there after a restart."""
    service = serve(workers=workers, drain_seconds="60")
    stop, acknowledged, statuses = threading.Event(), [], []
    connected = threading.Barrier(4)

    def slow(number: int) -> int:
        with httpx.Client(base_url=service.client.base_url, timeout=120) as client:
            files = [("images", (path.name, path.read_bytes())) for path in large]
            request = client.build_request("POST", "/enroll", data={"identity": f"slow-{number}"}, files=files)

            def body() -> Iterator[bytes]:
                connected.wait(30)
                yield request.read()

            headers = {"Content-Type": request.headers["content-type"]}
            return client.post("/enroll", content=body(), headers=headers).status_code

    def quick(number: int) -> None:
        with httpx.Client(base_url=service.client.base_url, timeout=120) as client:
            for turn in range(10_000):
                identity = f"quick-{number}-{turn}"
                image = DRAWINGS[(number + turn) % len(DRAWINGS)].read_bytes()
                try:
                    answer = client.post("/enroll", data={"identity": identity}, files={"images": image})
                except httpx.TransportError:
                    if stop.is_set():
                        return
                    raise
                statuses.append(answer.status_code)
                if answer.status_code == 201:
                    acknowledged.append(identity)

    with ThreadPoolExecutor(8) as pool:
        quicks = [pool.submit(quick, number) for number in range(4)]
        wait_for(lambda: len(acknowledged) > 4)
        slows = [pool.submit(slow, number) for number in range(3)]
        connected.wait(30)
        assert httpx.get(f"{service.client.base_url}/healthz").status_code == 200  # they were accepted before this one
        assert not any(future.done() for future in slows)
        stop.set()
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        while accepts(service):
            assert time.monotonic() - started < 3
        assert not all(future.done() for future in slows)  # while what it has is answered
        service.process.wait(60)
        assert [future.result() for future in slows] == [201, 201, 201]
        for future in quicks:
            future.result()
    assert set(statuses) <= {201, 503} and len(acknowledged) > 4
    service.client.close()
    service.start()
    found = held(service)
    assert [found[f"slow-{number}"] for number in range(3)] == [len(large)] * 3
    assert not set(acknowledged) - set(found)


def test_a_request_that_takes_too_long_is_refused_and_not_acknowledged(serve: Serve, large: list[Path]) -> None:
    """The end comes within the time that was set; what was refused is there in whole or not at all."""
    service = serve(drain_seconds="1", concurrency="1", max_images="100")
    outcome: list[str] = []

    def slow(number: int) -> None:
        files = [("images", (path.name, path.read_bytes())) for path in large * 6]
        url, fields = f"{service.client.base_url}/enroll", {"identity": f"i{number}"}
        refused = httpx.post(url, data=fields, files=files, timeout=120)
        outcome.append(assert_problem(refused, 503, "unavailable")["detail"])

    threads = [threading.Thread(target=slow, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: gauge(service, "diptych_encoder_busy") == 1 and gauge(service, "diptych_encoder_waiting") == 1)
    assert service.stop() < 25
    for thread in threads:
        thread.join()
    assert ["stopping" in said for said in outcome] == [True, True]
    assert "Traceback" not in service.log.read_text()
    service.start()
    assert set(held(service).values()) <= {len(large)}


def test_a_load_balancer_has_time_to_hear_of_it(serve: Serve) -> None:
    """For so long it says that it is not ready, and answers all the same."""
    service = serve(drain_delay_seconds="2")
    started = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    while (answer := service.client.get("/readyz")).status_code == 200:
        assert time.monotonic() - started < 1
    problem = assert_problem(answer, 503, "unavailable")
    assert "stopping" in problem["detail"]
    assert [name for name, check in problem["checks"].items() if not check["ok"]] == ["accepting"]
    assert service.enroll("late", A[0]).status_code == 201
    assert httpx.get(f"{service.client.base_url}/healthz").status_code == 200  # a new connection
    service.process.wait(20)
    assert 2 <= time.monotonic() - started < 6
    service.client.close()
    service.start()
    assert held(service) == {"late": 1}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_ends_the_wait(serve: Serve, workers: str) -> None:
    """Whoever is in a hurry."""
    service = serve(drain_delay_seconds="60", workers=workers)
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: service.client.get("/readyz").status_code == 503)
    assert accepts(service)
    assert service.stop() < 10
