"""Smoke test of a running service: verifies, enrolls and searches real drawings. Needs nothing but Python.

python tests/smoke.py [http://127.0.0.1:8000]
"""

import json
import sys
import urllib.request
import uuid
from pathlib import Path

DRAWINGS = Path(__file__).parent / "data" / "omniglot" / "evaluation"


def drawings(character: str) -> list[Path]:
    return sorted((DRAWINGS / character).glob("*.png"))


def post(url: str, fields: dict[str, str], files: list[tuple[str, Path]]) -> tuple[int, dict[str, object]]:
    """POST a multipart form; status and JSON answer."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for name, path in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"\r\n\r\n'
        body += head.encode() + path.read_bytes() + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        url, data=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, json.load(answer)


def main(base: str) -> None:
    first, other = drawings("Angelic/character01"), drawings("Tibetan/character03")
    collection = f"smoke-{uuid.uuid4().hex}"

    for expected, second in (("similar", first[2]), ("dissimilar", other[0])):
        status, answer = post(f"{base}/verify", {}, [("image_a", first[0]), ("image_b", second)])
        assert status == 200 and answer["verdict"] == expected, answer
        print(f"verify: {expected} at distance {answer['distance']:.3f}, threshold {answer['threshold']:.3f}")

    for name, images in (("angelic-01", first), ("tibetan-03", other)):
        status, enrolled = post(
            f"{base}/enroll",
            {"identity": name, "collection": collection},
            [("images", images[0]), ("images", images[1])],
        )
        assert status == 201 and len(enrolled["references"]) == 2, enrolled
        print(f"enroll: {name}, {len(enrolled['references'])} references")

    status, found = post(f"{base}/search", {"collection": collection}, [("image", other[2])])
    nearest = found["matches"][0]
    assert status == 200 and nearest["identity"] == "tibetan-03" and found["gallery_size"] == 2, found
    print(f"search: {nearest['identity']} at distance {nearest['distance']:.3f}")

    request = urllib.request.Request(f"{base}/collections/{collection}", method="DELETE")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 204, answer.status


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
