"""What the service's memory does under large images, and whether it comes back.

    python -m benchmarks.memory [CHECKPOINT]

PNGs of 6300 x 6300 RGBA pixels (just under the limit) to `/embed`, from 2, 8 and 24 clients at once.
"""

import io
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

from PIL import Image

from benchmarks.service import serve, status_mib

SIDE = 6300
ROUNDS = 3


def main(name: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n' + _large() + b"\r\n--x--\r\n"

    def ask(port: int) -> list[int]:
        statuses = []
        for _ in range(ROUNDS):
            connection = HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("POST", "/embed", body, {"Content-Type": "multipart/form-data; boundary=x"})
            statuses.append(connection.getresponse().status)
            connection.close()
        return statuses

    with tempfile.TemporaryDirectory() as directory:
        process, port, _ = serve(name, directory)
        try:
            print(f"at start {status_mib(process.pid, 'VmRSS'):.0f} MiB\n")
            print("| clients | peak so far, MiB | afterwards, MiB | statuses |\n| --- | --- | --- | --- |")
            for clients in (2, 8, 24):
                with ThreadPoolExecutor(clients) as pool:
                    statuses = [one for some in pool.map(ask, [port] * clients) for one in some]
                counts = {status: statuses.count(status) for status in sorted(set(statuses))}
                peak, after = status_mib(process.pid, "VmHWM"), status_mib(process.pid, "VmRSS")
                print(f"| {clients} | {peak:.0f} | {after:.0f} | {counts} |")
        finally:
            process.terminate()
            process.wait(10)


def _large() -> bytes:
    image = Image.new("RGBA", (SIDE, SIDE), "white")
    image.paste((0, 0, 0, 255), (100, 100, SIDE // 2, SIDE // 2))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "omniglot")
