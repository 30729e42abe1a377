"""Trained network to the files that serve: ONNX, safetensors, and the proof that both embed alike."""

import logging
import platform
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxscript import optimizer
from safetensors.torch import save
from torch import Tensor

from app.arrays import Array, EmbeddingsF32, Floats, ImageU8, Ints
from app.checkpoint.format import (
    CALIBRATION,
    ONNX,
    WEIGHTS,
    Architecture,
    Checkpoint,
    DatasetFacts,
    Description,
    Runtime,
    Split,
    printable,
)
from app.checkpoint.ids import compute_model_id
from app.checkpoint.store import seal_checkpoint
from app.errors import TrainingFailed
from app.image.policy import Preprocessing
from training.calibration.calibrate import Sample, calibrate
from training.data.dataset import Dataset, SplitName
from training.network.network import Encoder
from training.recipe import Recipe

# The largest difference in distance, between training's network and the exported one, that passes.
MAX_DRIFT = 1e-4
PARITY_BATCHES = (1, 8)


def write_checkpoint(
    output: Path,
    encoder: Encoder,
    dataset: Dataset,
    splits: dict[SplitName, Ints],
    preprocessing: Preprocessing,
    architecture: Architecture,
    recipe: Recipe,
    training: dict[str, Any],
) -> Checkpoint:
    """Export the trained encoder, choose and measure its thresholds, and seal the checkpoint.

    Thresholds are chosen on the calibration identities and measured on the test identities, by the encoder as
    it is stored. `training` is what the checkpoint says of the run. Raises `TrainingFailed` if the exported
    encoder does not embed like the trained one.
    """
    images = {name: dataset.images_of(identities) for name, identities in splits.items()}
    round_weights(encoder)
    write_encoder(encoder, dataset.images_NHWC, output)
    runtime = check_parity(encoder, dataset.images_NHWC[images["test"][:512]], output)

    def sample(split: SplitName) -> Sample:
        of = images[split]
        return Sample(embed(encoder, dataset.images_NHWC, of), dataset.identity_N[of], dataset.group_N[of])

    verdicts = calibrate(
        sample("calibration"),
        sample("test"),
        margin=recipe.fixed_margin,
        target_fmr=recipe.target_fmr,
        unit=recipe.split_by,
        fingerprint=dataset.fingerprint,
    )
    np.savez_compressed(output / CALIBRATION, **verdicts.curves)  # type: ignore[arg-type]
    weights = {name: tensor.numpy() for name, tensor in weights_of(encoder).items()}
    description = Description(
        name=printable(output.name),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model_id=compute_model_id(weights, architecture, preprocessing),
        architecture=architecture,
        embedding_dim=recipe.embedding_dim,
        preprocessing=preprocessing,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        margin=recipe.fixed_margin,
        **verdicts.fields,
        dataset=DatasetFacts(
            fingerprint=dataset.fingerprint,
            identities=len(dataset.identities),
            images=len(dataset),
            skipped=dataset.skipped,
            split_seed=recipe.seed,
            splits={name: Split(identities=len(splits[name]), images=len(images[name])) for name in splits},
        ),
        training=training,
        runtime=runtime,
        versions={
            "diptych": version("diptych"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": version("pillow"),
        },
    )
    return seal_checkpoint(output, description)


def round_weights(encoder: Encoder) -> None:
    """Round the weights of convolutions and layers to float16, in place, so that half of the bytes store them.

    Norms, biases and pixel scaling stay float32: they are few. Raises `TrainingFailed` for a weight that is
    too large for it (beyond 65,504: a network that has diverged).
    """
    for tensor in encoder.state_dict().values():
        if _is_stored_small(tensor):
            rounded = tensor.half()
            if not torch.isfinite(rounded).all():
                raise TrainingFailed("The weights have grown beyond 65,504: a smaller --learning-rate mends it.")
            tensor.copy_(rounded)


def _is_stored_small(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() >= 1024


def weights_of(network: Encoder) -> dict[str, Tensor]:
    """All that decides an embedding, by name, as it is stored. Batch counters of the norms do not."""
    return {
        name: (tensor.half() if _is_stored_small(tensor) else tensor).detach().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def write_encoder(network: Encoder, example_BHWC: ImageU8, directory: Path) -> None:
    """Write `encoder.safetensors` and `encoder.onnx`, whose only dynamic axis is the batch.

    Expects rounded weights (`round_weights`).
    """
    network.eval()
    (directory / WEIGHTS).write_bytes(save(weights_of(network)))
    example = torch.from_numpy(np.ascontiguousarray(example_BHWC[:2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter warns of its own internals, not of this network.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_shapes={"images_BHWC": {0: torch.export.Dim("N", min=1)}},
            verbose=False,
            dynamo=True,
            optimize=False,  # It would fold the norms into the weights, which then are no float16 any more.
        )
        if program is None:
            raise TrainingFailed("PyTorch's exporter gave no ONNX program. The checkpoint was not written.")
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
        model = program.model_proto
    _store_small(model.graph)
    onnx.save(model, directory / ONNX)


def _store_small(graph: onnx.GraphProto) -> None:
    """Keep large float32 tensors as float16, each cast back where it is used; the runtime does so once, at start."""
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type == onnx.TensorProto.FLOAT and values.ndim > 1 and values.size >= 1024:
            name = tensor.name
            small = onnx.numpy_helper.from_array(values.astype(np.float16), name + ".half")
            tensor.CopyFrom(small)
            graph.node.insert(0, onnx.helper.make_node("Cast", [small.name], [name], to=onnx.TensorProto.FLOAT))


def embed(network: Encoder, images_NHWC: ImageU8, of: Ints | None = None, batch: int = 256) -> EmbeddingsF32:
    """Unit embeddings `[N, D]` of all images, or of those that `of` names, by the network itself in float32."""
    network.eval()
    index = np.arange(len(images_NHWC)) if of is None else of
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(images_NHWC[index[start : start + batch]]).to(network.mean.device))
            for start in range(0, len(index), batch)
        ]
    return torch.cat(parts).cpu().numpy()


def check_parity(network: Encoder, images_NHWC: ImageU8, directory: Path) -> Runtime:
    """Compare distances of real pairs, network against ONNX Runtime, at batch 1 and 8.

    Raises `TrainingFailed` if any of them differs by more than `MAX_DRIFT`.
    """
    session = ort.InferenceSession((directory / ONNX).read_bytes(), providers=["CPUExecutionProvider"])
    wanted = _all_distances(embed(network, images_NHWC))
    drift = 0.0
    for batch in PARITY_BATCHES:
        parts = [
            session.run(None, {"pixels": np.ascontiguousarray(images_NHWC[start : start + batch])})[0]
            for start in range(0, len(images_NHWC), batch)
        ]
        drift = max(drift, float(np.abs(_all_distances(np.concatenate(parts)) - wanted).max()))
    if not drift <= MAX_DRIFT:
        raise TrainingFailed(
            f"The exported encoder's distances differ by up to {drift:.2e} from the trained one's; "
            f"{MAX_DRIFT:g} is allowed. The checkpoint was not written."
        )
    return Runtime(
        name="onnxruntime",
        version=ort.__version__,
        precision="float32",
        pairs=len(wanted),
        max_distance_drift=drift,
    )


def _all_distances(embeddings_ND: Array) -> Floats:
    wide_ND = embeddings_ND.astype(np.float64)
    return np.concatenate([np.linalg.norm(wide_ND[row + 1 :] - wide_ND[row], axis=1) for row in range(len(wide_ND))])
