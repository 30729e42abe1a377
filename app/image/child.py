"""The decoder process: images in, pixels or refusals out. `sandbox` starts and kills it.

    python -m app.image.child MIB IDLE_SECONDS [heic]

A request on standard input has two lengths (`REQUEST`), the task as JSON, and the image. An answer on standard output
has a kind and a length (`ANSWER`), then the pixels or the refusal as JSON. Before the first byte of an image arrives,
the process gives up all rights that it does not need (`confinement`). It ends when its standard input closes, when it
is idle for too long, and when an image takes too long.
"""

import importlib
import json
import os
import select
import signal
import struct
import sys
from typing import Any

from PIL import Image

from app.errors import ImageError
from app.image.confinement import confine
from app.image.policy import HEIF, Preprocessing, decode, load_plugin
from app.image.suspects import ISOLATED_FORMATS, ORDINARY_FORMATS

REQUEST, ANSWER = struct.Struct("<IQ"), struct.Struct("<BQ")
# Ready, with system calls restricted or not.
CONFINED, OPEN = b"C", b"O"
PIXELS, REFUSED = 0, 1


def main() -> None:
    mib, idle_seconds, *others = sys.argv[1:]
    _load(heic="heic" in others)
    # What a library prints must not mix with the answers, nor reach the log.
    answers, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    confined = confine(int(mib), threads="heic" in others)  # libde265 starts threads
    _write(answers, CONFINED if confined else OPEN)
    while select.select([0], [], [], float(idle_seconds))[0]:
        head = sys.stdin.buffer.read(REQUEST.size)
        if len(head) < REQUEST.size:
            break
        kind, answer = _answered(*(sys.stdin.buffer.read(length) for length in REQUEST.unpack(head)))
        _write(answers, ANSWER.pack(kind, len(answer)))
        _write(answers, answer)


def _load(*, heic: bool) -> None:
    """Import all that decoding may need while files can still be opened. Not at import: the parent imports this file
    too."""
    from PIL import AvifImagePlugin

    for name in (*ORDINARY_FORMATS, *ISOLATED_FORMATS):
        if name != HEIF or heic:
            load_plugin(name)
    for name in ("ImageCms", "ImageColor", "ImageFilter", "ImagePalette", "MpoImagePlugin"):
        importlib.import_module(f"PIL.{name}")
    Image.preinit()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _answered(what: bytes, data: bytes) -> tuple[int, bytes]:
    """Kind and bytes of the answer. After `seconds` of processor time or `clock_seconds` the kernel kills the process:
    a decoder that hangs would not notice an exception, but the default action of these signals ends it."""
    asked: dict[str, Any] = json.loads(what)
    signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
    signal.setitimer(signal.ITIMER_REAL, asked["clock_seconds"])
    try:
        pixels = decode(
            data,
            Preprocessing(**asked["to"]),
            max_bytes=asked["max_bytes"],
            max_pixels=asked["max_pixels"],
            formats=tuple(asked["formats"]),
            refuse_blank=asked["refuse_blank"],
        )
    except ImageError as problem:
        return REFUSED, json.dumps({"code": problem.code, "detail": problem.detail}).encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return PIXELS, pixels.tobytes()


def _write(to: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(to, view) :]


if __name__ == "__main__":
    main()
