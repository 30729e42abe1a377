"""Where each millisecond of `/verify` goes.

    python -m benchmarks.profile CHECKPOINT CAMERAS [--seconds 5]

The same requests to servers that do ever more of the work, each in turn, so that the difference between two is what the
later one adds: processor milliseconds a request, of all threads (`wrk` in a closed loop; medians over rounds).
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from starlette.types import Receive, Scope, Send
from tqdm import tqdm

from app.checkpoint.encoder import Encoder
from app.checkpoint.store import load_checkpoint
from app.http.protocol import Protocol
from app.http.routes.forms import VerifyForm, read_form
from benchmarks import pictures
from benchmarks.load import wrk
from benchmarks.service import free_port, serve, start
from benchmarks.speed import loop

ROUNDS = 5
CONNECTIONS = 8
STEPS = {
    "socket": "uvicorn reads the body and answers",
    "fastapi": "and FastAPI routes it",
    "form": "and the form is read and checked",
}


def socket_app() -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    return app


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.post("/verify")
    async def verify(request: Request) -> Response:
        async for _ in request.stream():
            pass
        return Response(b"{}")

    return app


def form_app() -> FastAPI:
    app = FastAPI()

    @app.post("/verify")
    async def verify(form: Annotated[VerifyForm, Depends(read_form(VerifyForm))]) -> Response:
        return Response(b"{}")

    return app


def measure(name: str, cameras: Path, seconds: float) -> None:
    """Run it and print the table."""
    encoder = Encoder(load_checkpoint(name))
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="diptych-bench-"))
        servers: dict[str, tuple[int, int]] = {}
        for step in STEPS:
            port = free_port()
            process, _ = start(
                [sys.executable, "-m", "benchmarks.profile", "serve", step, str(port)], port, {}, "/docs"
            )
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            servers[step] = process.pid, port
        process, port, _ = serve(name, directory)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        servers["whole"] = process.pid, port
        for size, pixels in pictures.SIZES.items():
            images = pictures.photos(cameras, pixels, 8)
            bodies = pictures.bodies(images, Path(directory))
            taken: dict[str, list[float]] = {step: [] for step in ("loop", *servers)}
            for number in tqdm(range(-1, ROUNDS), desc=size, unit="round", disable=None):
                turn = 1.0 if number < 0 else seconds
                now = {"loop": loop(encoder, images, turn).cpu_each}
                for step, (pid, port) in servers.items():
                    now[step] = wrk(f"http://127.0.0.1:{port}/verify", bodies, turn, CONNECTIONS, pid).cpu_each
                if number >= 0:
                    for step, cpu in now.items():
                        taken[step].append(1000 * cpu)
            _print(size, {step: statistics.median(values) for step, values in taken.items()})


def _print(size: str, ms: dict[str, float]) -> None:
    print(f"\n{size} JPEGs, two a request:\n\n| | CPU ms | adds |\n| --- | --- | --- |")
    before = 0.0
    for step, words in STEPS.items():
        print(f"| {words} | {ms[step]:.2f} | {ms[step] - before:.2f} |")
        before = ms[step]
    print(f"| decoding, embedding and comparing alone, in a loop | {ms['loop']:.2f} | |")
    print(f"| the service | {ms['whole']:.2f} | {ms['whole'] - ms['loop']:.2f} over the loop |")
    rest = ms["whole"] - ms["loop"] - before
    print(f"| its own share: guard, limits, counts, turn, verdict, caches shared with all that | | {rest:.2f} |")


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        app = {"socket": socket_app, "fastapi": fastapi_app, "form": form_app}[sys.argv[2]]()
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), http=Protocol, log_level="warning")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("cameras", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    measure(given.checkpoint, given.cameras, given.seconds)


if __name__ == "__main__":
    main()
