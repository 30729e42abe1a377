"""What tutorials write: FastAPI, PyTorch in eager mode, torchvision's transforms, with the same weights.

python -m benchmarks.peers.tutorial CHECKPOINT PORT
"""

import sys

import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision import transforms

from app.checkpoint.store import load_checkpoint
from training.network.backbones import build


def create_app(name: str) -> FastAPI:
    opened = load_checkpoint(name)
    to = opened.description.preprocessing
    model = build(opened.description.architecture)
    model.load_state_dict({key: value.float() for key, value in load_file(opened.weights).items()}, strict=False)
    model.eval()
    transform = transforms.Compose([transforms.Resize((to.height, to.width)), transforms.PILToTensor()])
    app = FastAPI()

    def pixels(upload: UploadFile) -> Tensor:
        return transform(Image.open(upload.file).convert("RGB")).permute(1, 2, 0)

    @app.post("/verify")
    def verify(image_a: UploadFile, image_b: UploadFile) -> dict[str, float | bool]:
        with torch.no_grad():
            a_D, b_D = model(torch.stack([pixels(image_a), pixels(image_b)]))
        distance = float(torch.linalg.norm(a_D - b_D))
        return {"distance": distance, "similar": distance <= opened.description.threshold}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
