"""LitServe with the same ONNX file: two workers, a session each, as its documentation has it.

    python -m benchmarks.peers.lit CHECKPOINT PORT ordinary|reduced

`ordinary` decodes as every tutorial does; `reduced` by Diptych's own `decode`, so that only the serving differs.
"""

import os
import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime as ort
from fastapi import Request
from PIL import Image

from app.arrays import ImageU8
from app.checkpoint.format import Checkpoint
from app.checkpoint.store import load_checkpoint
from app.image.policy import decode


class Verify(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, opened: Checkpoint, reduced: bool) -> None:
        super().__init__(api_path="/verify")
        self.opened, self.reduced = opened, reduced

    def setup(self, device: Any) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(self.opened.onnx.read_bytes(), options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def decode_request(self, request: Request) -> ImageU8:
        return np.stack([self._pixels(request[field].file) for field in ("image_a", "image_b")])

    def _pixels(self, file: Any) -> ImageU8:
        to = self.opened.description.preprocessing
        if self.reduced:
            return decode(file.read(), to)
        return np.asarray(Image.open(file).convert("RGB").resize((to.width, to.height)))

    def predict(self, images_NHWC: ImageU8) -> float:
        a_D, b_D = self.session.run(None, {self.name: images_NHWC})[0]
        return float(np.linalg.norm(a_D - b_D))

    def encode_response(self, distance: float) -> dict[str, Any]:
        return {"distance": distance, "similar": distance <= self.opened.description.threshold}


if __name__ == "__main__":
    name, port, kind = sys.argv[1:]
    api = Verify(load_checkpoint(name), kind == "reduced")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=os.cpu_count() or 1)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")
