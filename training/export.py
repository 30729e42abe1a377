"""Trained network to the files that serve: ONNX, safetensors, and the check that both embed alike."""

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

from app.arrays import Array, Floats, ImageU8
from app.checkpoint.format import (
    CALIBRATION,
    ONNX,
    WEIGHTS,
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
from training.calibration.calibrate import Sample, calibrate
from training.data.splits import SplitName
from training.network.encoder import Encoder, embed_with_network
from training.run.experiment import Experiment

# The largest difference in distance, between training's network and the exported one, that passes.
MAX_DRIFT = 1e-4
PARITY_BATCHES = (1, 8)


def write_checkpoint(output: Path, encoder: Encoder, experiment: Experiment, training: dict[str, Any]) -> Checkpoint:
    """Export the trained encoder, choose and measure its thresholds, and seal the checkpoint.

    Thresholds are chosen on the calibration identities and measured on the test identities, with the encoder as it is
    stored. `training` is what the checkpoint records about the run. Raises `TrainingFailed` if the exported encoder
    does not embed like the trained one.
    """
    dataset, recipe, images = experiment.dataset, experiment.recipe, experiment.images
    round_weights(encoder)
    write_encoder(encoder, dataset.images_NHWC, output)
    runtime = check_parity(encoder, dataset.images_NHWC[images["test"][:512]], output)

    def sample(split: SplitName) -> Sample:
        index_N = images[split]
        embeddings_ND = embed_with_network(encoder, dataset.images_NHWC, index_N)
        return Sample(embeddings_ND, dataset.identity_N[index_N], dataset.group_N[index_N])

    calibration = calibrate(
        sample("calibration"),
        sample("test"),
        margin=recipe.fixed_margin,
        target_fmr=recipe.target_fmr,
        unit=recipe.split_by,
        fingerprint=dataset.fingerprint,
    )
    np.savez_compressed(output / CALIBRATION, **calibration.curves)  # type: ignore[arg-type]
    weights = {name: tensor.numpy() for name, tensor in weights_of(encoder).items()}
    description = Description(
        name=printable(output.name),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model_id=compute_model_id(weights, experiment.architecture, recipe.preprocessing),
        architecture=experiment.architecture,
        embedding_dim=recipe.embedding_dim,
        preprocessing=recipe.preprocessing,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        margin=recipe.fixed_margin,
        **calibration.fields,
        dataset=DatasetFacts(
            fingerprint=dataset.fingerprint,
            identities=len(dataset.identities),
            images=len(dataset),
            skipped=dataset.skipped,
            split_seed=recipe.seed,
            splits={
                name: Split(identities=len(identities), images=len(images[name]))
                for name, identities in experiment.splits.items()
            },
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
    """Round the weights of convolutions and linear layers to float16, in place, which halves the files.

    Norms, biases and pixel scaling are few and stay float32. Raises `TrainingFailed` for a weight beyond 65,504, which
    float16 can't hold; a network with such a weight has diverged.
    """
    for tensor in encoder.state_dict().values():
        if _is_stored_as_float16(tensor):
            rounded = tensor.half()
            if not torch.isfinite(rounded).all():
                raise TrainingFailed("A weight has grown beyond 65,504. Try a smaller --learning-rate.")
            tensor.copy_(rounded)


def _is_stored_as_float16(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() >= 1024


def weights_of(network: Encoder) -> dict[str, Tensor]:
    """Everything that decides an embedding, by name, as it is stored: all tensors but the norms' batch counters."""
    return {
        name: (tensor.half() if _is_stored_as_float16(tensor) else tensor).detach().contiguous()
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
        warnings.simplefilter("ignore")  # the exporter warns about its own internals, not about this network
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_shapes={"images_BHWC": {0: torch.export.Dim("N", min=1)}},
            verbose=False,
            dynamo=True,
            optimize=False,  # It would fold the norms into the weights, which float16 could then not hold exactly.
        )
        if program is None:
            raise TrainingFailed("PyTorch's exporter returned no ONNX program. The checkpoint was not written.")
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
        model = program.model_proto
    _store_as_float16(model.graph)
    onnx.save(model, directory / ONNX)


def _store_as_float16(graph: onnx.GraphProto) -> None:
    """Store large float32 tensors as float16, with a cast back, which the runtime does once, at start."""
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type == onnx.TensorProto.FLOAT and values.ndim > 1 and values.size >= 1024:
            name = tensor.name
            small = onnx.numpy_helper.from_array(values.astype(np.float16), name + ".half")
            tensor.CopyFrom(small)
            graph.node.insert(0, onnx.helper.make_node("Cast", [small.name], [name], to=onnx.TensorProto.FLOAT))


def check_parity(network: Encoder, images_NHWC: ImageU8, directory: Path) -> Runtime:
    """Compare distances of real pairs, network against ONNX Runtime, at batch 1 and 8.

    Raises `TrainingFailed` if any of them differs by more than `MAX_DRIFT`.
    """
    session = ort.InferenceSession((directory / ONNX).read_bytes(), providers=["CPUExecutionProvider"])
    wanted = _all_distances(embed_with_network(network, images_NHWC))
    drift = 0.0
    for batch in PARITY_BATCHES:
        parts = [
            session.run(None, {"pixels": np.ascontiguousarray(images_NHWC[start : start + batch])})[0]
            for start in range(0, len(images_NHWC), batch)
        ]
        drift = max(drift, float(np.abs(_all_distances(np.concatenate(parts)) - wanted).max()))
    if not drift <= MAX_DRIFT:
        raise TrainingFailed(
            f"The exported encoder's distances differ by up to {drift:.2e} from those of the trained one, and "
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
