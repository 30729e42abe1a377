"""Encoders: every backbone trains and exports; weights come from files, checkpoints, or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from app.checkpoint.format import ONNX, Architecture
from app.checkpoint.store import load_checkpoint
from app.errors import UsageError
from app.image.policy import Preprocessing, decode
from tests.files import BACKGROUND, GOLDEN
from training.export import check_parity, round_weights, write_encoder
from training.network.backbones import TorchvisionEncoder, build
from training.network.encoder import Encoder
from training.network.weights import check_weights, load_weights
from training.recipe import Recipe
from training.train import RunOptions, train_encoder

NAMES = ("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "resnet18", "resnet50", "convnext_tiny")


def architecture(name: str, pooling: str = "mean", channels: int = 1, bottleneck: int = 0) -> Architecture:
    options = {
        "embedding_dim": 8,
        "channels": channels,
        "dropout": 0.0,
        "pooling": pooling,
        "bottleneck": bottleneck,
        "image_size": 48,
        "mean": [0.5] * channels,
        "std": [0.25] * channels,
    }
    if name == "compact":
        options |= {"stem": 8, "blocks": [[16, 2], [16, 1], [24, 2]]}
    return Architecture(name=name, options=options)


def drawings(channels: int, count: int = 12) -> np.ndarray:
    to = Preprocessing(height=48, width=48, channels=channels, aspect="pad")  # type: ignore[arg-type]
    return np.stack([decode(path.read_bytes(), to) for path in sorted(BACKGROUND.rglob("*.png"))[::31][:count]])


@pytest.mark.parametrize("name", [*NAMES, "compact"])
def test_every_backbone_exports_an_encoder_that_embeds_alike(name: str, tmp_path: Path) -> None:
    """Grey images, unit embeddings, parity at batch 1 and 8, weights stored as float16."""
    torch.manual_seed(0)
    network = build(architecture(name, channels=1))
    images = drawings(1)
    round_weights(network)
    write_encoder(network, images, tmp_path)
    assert check_parity(network, images, tmp_path).max_distance_drift < 1e-4
    stored = (tmp_path / ONNX).stat().st_size
    assert stored < 2.5 * sum(parameter.numel() for parameter in network.parameters()) + 300_000


@pytest.mark.parametrize("pooling", ["mean", "gem", "grid"])
@pytest.mark.parametrize("bottleneck", [0, 4])
@pytest.mark.parametrize("name", ["compact", "resnet18"])
def test_every_head_has_gradients_and_exports(name: str, pooling: str, bottleneck: int, tmp_path: Path) -> None:
    """Colour images; each parameter learns."""
    torch.manual_seed(0)
    network = build(architecture(name, pooling, channels=3, bottleneck=bottleneck))
    images = drawings(3)
    network.train()
    embeddings = network(torch.from_numpy(images))
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(len(images)), atol=1e-5)
    (embeddings * torch.randn_like(embeddings)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    round_weights(network)
    write_encoder(network, images, tmp_path)
    assert check_parity(network, images, tmp_path).max_distance_drift < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_weights_of_torchvision_come_from_a_local_file(name: str, tmp_path: Path) -> None:
    """A state dict with its classifier, as torchvision gives it; .pth without unpickling objects, or safetensors."""
    torch.manual_seed(1)
    whole = models.get_model(name)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    save_file({key: value.contiguous() for key, value in whole.state_dict().items()}, tmp_path / "weights.safetensors")
    for file in ("weights.pth", "weights.safetensors"):
        network = build(architecture(name, channels=3))
        assert isinstance(network, TorchvisionEncoder)
        assert "tensors from" in load_weights(network, Recipe(backbone=name, weights=str(tmp_path / file)))  # type: ignore[arg-type]
        image = torch.rand(2, 3, 64, 64)
        whole.eval()
        network.eval()
        wanted = whole.layer4(
            whole.layer3(whole.layer2(whole.layer1(whole.maxpool(whole.relu(whole.bn1(whole.conv1(image)))))))
        ) if name == "resnet18" else whole.features(image)  # fmt: skip
        assert torch.allclose(network.features(image), wanted, atol=1e-5)


def test_weights_that_do_not_fit_or_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """Of another network, no weights at all, a pickle of something else, or pretrained where there is nothing."""
    network = build(architecture("resnet18", channels=3))
    torch.save(models.get_model("mobilenet_v3_small").state_dict(), tmp_path / "other.pth")
    torch.save({"evil": Path("x")}, tmp_path / "object.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    for source, words in (
        ("other.pth", "another network"),
        ("object.pth", "can't be read"),
        ("text.pth", "can't be read"),
        ("tensor.pth", "no state dict"),
    ):
        with pytest.raises(UsageError, match=words):
            load_weights(network, Recipe(backbone="resnet18", weights=str(tmp_path / source)))
    with pytest.raises(UsageError, match="no pretrained weights"):
        check_weights(Recipe(weights="pretrained"))
    with pytest.raises(UsageError, match="There is no file or directory"):
        check_weights(Recipe(weights=str(tmp_path / "nowhere.pth")))


def test_weights_of_another_encoder_are_refused_with_the_options_that_fit() -> None:
    """The bundled encoder is for grey images; with the options that the refusal names, its weights fit."""
    network = build(architecture("compact", channels=3))
    with pytest.raises(UsageError, match=r"Add --channels 1 --width 1\.0, or choose other --weights"):
        load_weights(network, Recipe(weights="omniglot", channels=3, width=0.5))
    description = load_checkpoint("omniglot").description
    fitting = build(description.architecture)
    assert "tensors from omniglot" in load_weights(fitting, Recipe(weights="omniglot", channels=1, width=1.0))


def test_images_too_small_for_a_backbone_are_refused() -> None:
    """Before the first step, with what to change."""
    small = architecture("convnext_tiny")
    with pytest.raises(UsageError, match="--image-size"):
        build(small.model_copy(update={"options": {**small.options, "image_size": 16}}))


def test_weights_that_learned_the_test_identities_are_refused(trained: Path, tmp_path: Path) -> None:
    """The same folder, split by another seed: what was learned would count as unseen."""
    seed = load_checkpoint(trained).description.training["seed"]
    recipe = Recipe(epochs=1, width=0.5, image_size=32, calibration_share=0.3, test_share=0.3, weights=str(trained),
                    seed=seed + 1, threads=1)  # fmt: skip
    with pytest.raises(UsageError, match=r"another seed.*--despite-lint"):
        train_encoder(BACKGROUND, tmp_path / "out", recipe, RunOptions(progress=False))


def test_training_goes_on_from_a_checkpoint_of_ones_own(trained: Path, tmp_path: Path) -> None:
    """All tensors fit; hardly changed in an epoch at low speed, it is still the encoder that was learned."""
    seed = load_checkpoint(trained).description.training["seed"]
    recipe = Recipe(epochs=1, width=0.5, image_size=32, calibration_share=0.3, test_share=0.3, learning_rate=1e-6,
                    ema=0, weights=str(trained), seed=seed, threads=1)  # fmt: skip
    tuned = train_encoder(BACKGROUND, tmp_path / "tuned", recipe, RunOptions(progress=False))
    assert tuned is not None
    assert "tensors from" in tuned.description.training["weights_loaded"]
    before, after = (
        description.calibration.eer for description in (load_checkpoint(trained).description, tuned.description)
    )
    assert after == pytest.approx(before, abs=0.03)


def test_a_torchvision_backbone_trains_by_its_name(tmp_path: Path) -> None:
    """From a file of weights, on grey drawings, to a checkpoint."""
    torch.save(models.get_model("mobilenet_v3_small").state_dict(), tmp_path / "weights.pth")
    recipe = Recipe(backbone="mobilenet_v3_small", weights=str(tmp_path / "weights.pth"), pooling="gem", bottleneck=16,
                    impostors="semi-hard", epochs=1, image_size=32, threads=1)  # fmt: skip
    done = train_encoder(BACKGROUND, tmp_path / "out", recipe, RunOptions(progress=False))
    assert done is not None
    assert done.description.architecture.name == "mobilenet_v3_small"
    assert done.description.architecture.options["mean"] == [0.485, 0.456, 0.406]


def test_the_first_checkpoints_architecture_still_builds() -> None:
    """Format 1 is read for good."""
    network = build(load_checkpoint(GOLDEN).description.architecture)
    assert isinstance(network, Encoder)
