"""The commands of training: they parse, call, and print. Only `train` needs PyTorch."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np

from app import checkpoint as format_1
from app.checkpoint import Checkpoint
from app.errors import UsageError

FOLDER = click.Path(path_type=Path)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


class Finite(click.FloatRange):
    """A range of real numbers: what is no number, or endless, is outside of it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


_quiet = click.option("--quiet", is_flag=True, help="No progress bars.")


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="Directory of the checkpoint; it must be new.")
@click.option("--epochs", type=click.IntRange(1), default=40, show_default=True, help="Passes over the images.")
@click.option("--image-size", type=click.IntRange(16, 512), help="Side of the encoder's input [default: 64 for "
              "small images, 128 for others].")  # fmt: skip
@click.option("--channels", type=click.Choice(["1", "3"]), help="Grey or colour [default: read off the data].")
@click.option("--aspect", type=click.Choice(["pad", "stretch", "crop"]), default="pad", show_default=True,
              help="How an image that is no square becomes one.")  # fmt: skip
@click.option("--embedding-dim", type=click.IntRange(2, 2048), default=128, show_default=True)
@click.option("--width", type=Finite(0.1, 4), default=1.0, show_default=True,
              help="Channels of the network, as a multiple: 0.5 is about four times as small and fast.")  # fmt: skip
@click.option("--margin", type=Finite(0, 2, min_open=True), default=1.0, show_default=True,
              help="Distance that impostor pairs are pushed to; below 1.41 makes sense.")  # fmt: skip
@click.option("--impostors", type=click.Choice(["active", "all"]), default="active", show_default=True,
              help="Average the impostor term over pairs inside the margin, or over all.")  # fmt: skip
@click.option("--identities-per-batch", type=click.IntRange(2), default=48, show_default=True)
@click.option("--images-per-identity", type=click.IntRange(2), default=4, show_default=True)
@click.option("--near-share", type=Finite(0, 1), default=0.5, show_default=True,
              help="Share of a batch's identities that comes from few groups (parent folders).")  # fmt: skip
@click.option("--near-groups", type=click.IntRange(1), default=3, show_default=True, help="How few.")
@click.option("--optimizer", type=click.Choice(["adamw", "adam", "sgd"]), default="adamw", show_default=True)
@click.option("--learning-rate", type=Finite(0, min_open=True), default=2e-3, show_default=True,
              help="Its peak, after a warm-up; cosine to zero from there.")  # fmt: skip
@click.option("--weight-decay", type=Finite(0), default=0.02, show_default=True)
@click.option("--ema", type=Finite(0, 1, max_open=True), default=0.998, show_default=True,
              help="Decay of the moving average of the weights; 0 switches it off.")  # fmt: skip
@click.option("--dropout", type=Finite(0, 0.9), default=0.0, show_default=True)
@click.option("--quarter-turns", is_flag=True, help="A turned identity is another identity (characters, symbols).")
@click.option("--calibration-share", type=Finite(0, 0.8), default=0.15, show_default=True,
              help="Share of identities kept from training to choose the threshold.")  # fmt: skip
@click.option("--test-share", type=Finite(0, 0.8), default=0.15, show_default=True,
              help="Share of identities kept from both to measure its error rates.")  # fmt: skip
@click.option("--split-by", type=click.Choice(["identity", "group"]), default="identity", show_default=True,
              help="Keep out single identities, or whole groups (parent folders).")  # fmt: skip
@click.option("--target-fmr", type=Finite(0, 1, min_open=True, max_open=True), default=0.01,
              show_default=True, help="False-match rate of the default threshold.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads [default: all cores].")
@_quiet
def train(data: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Train an encoder on the folder tree DATA and write its checkpoint.

    Every folder that directly holds images is one identity, named by its path; its parent folder is its
    group. Some identities are kept from training: some choose the threshold, others measure how often it
    errs. The report (plots, metrics.json, index.html) goes to OUTPUT/report.

    \b
    diptych train photos/ --output runs/mine
    diptych serve --checkpoint runs/mine
    """
    try:
        from training.recipe import Recipe
        from training.train import train as run
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"Training is not installed ({missing.name} is missing): `make env-training`, or install diptych[training]."
        ) from None
    if options["channels"] is not None:
        options["channels"] = int(options["channels"])
    recipe = Recipe(**{field.name: options[field.name] for field in fields(Recipe) if field.name in options})
    checkpoint = run(data, output, recipe, progress=not quiet)
    _print_points(checkpoint)
    click.echo(f"\ncheckpoint {output}, report {output / 'report' / 'index.html'}")


@click.command()
@click.argument("checkpoint")
@click.option("--data", type=FOLDER, help="Folder tree, one folder per identity: all pairs are judged.")
@click.option("--pairs", type=FOLDER, help="CSV with columns image_a,image_b,same (1 or 0); needs --root.")
@click.option("--root", type=FOLDER, help="Folder that the paths in --pairs are relative to.")
@click.option("--output", type=FOLDER, help="Directory for metrics.json.")
@_quiet
def evaluate(
    checkpoint: str,
    data: Path | None,
    pairs: Path | None,
    root: Path | None,
    output: Path | None,
    quiet: bool,
) -> None:
    """Measure how often CHECKPOINT (a directory or a bundled name) errs on images it never saw.

    \b
    diptych evaluate omniglot --data others/
    diptych evaluate runs/mine --pairs pairs.csv --root photos/ --output runs/figures
    """
    from training import evaluate as stage

    if (data is None) == (pairs is None):
        raise UsageError("Give --data FOLDER, or --pairs FILE.csv with --root FOLDER: one of the two.")
    if data is not None and root is not None:
        raise UsageError("--root goes with --pairs, not with --data.")
    opened = format_1.load(checkpoint)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    if data is not None:
        result = stage.evaluate_folder(opened, data, progress=not quiet)
    elif pairs is not None and root is not None:
        result = stage.evaluate_pairs(opened, pairs, root, progress=not quiet)
    else:
        raise UsageError("--pairs needs --root: the folder that its paths are relative to.")
    figures = result.metrics
    click.echo(f"threshold         {figures['threshold']:.4f} ({opened.description.threshold_source})")
    click.echo(f"FMR               {_percent(figures['fmr'])} of {figures['impostor_pairs']:,} impostor pairs")
    if figures["same_group_fmr"] is not None:
        near = figures["same_group_impostor_pairs"]
        click.echo(f"FMR, same group   {_percent(figures['same_group_fmr'])} of {near:,}")
    click.echo(f"FNMR              {_percent(figures['fnmr'])} of {figures['genuine_pairs']:,} genuine pairs")
    click.echo(f"EER               {_percent(figures['eer'])}")
    if figures["same_group_eer"] is not None:
        click.echo(f"EER, same group   {_percent(figures['same_group_eer'])}")
    click.echo(f"images            {figures['images']:,} ({figures['skipped']} skipped)")
    if result.note:
        click.echo(result.note)
    if output is not None:
        document = {**figures, "model_id": opened.description.model_id, "note": result.note}
        (output / "metrics.json").write_text(json.dumps(document, indent=2) + "\n")


@click.command()
@click.argument("checkpoint")
@click.option("--data", type=FOLDER, required=True, help="Folder tree, one folder per identity.")
@click.option("--output", type=FOLDER, required=True, help="Directory of the new checkpoint.")
@click.option("--target-fmr", type=Finite(0, 1, min_open=True, max_open=True), default=0.01,
              show_default=True, help="False-match rate of the default threshold.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Draws the two halves.")
@_quiet
def calibrate(checkpoint: str, data: Path, output: Path, target_fmr: float, seed: int, quiet: bool) -> None:
    """Measure thresholds and error rates of CHECKPOINT anew, on images like those it will judge.

    Half of the identities choose the threshold, the other half measure it; the encoder stays as it is.
    """
    from training import evaluate as stage

    opened = format_1.load(checkpoint)
    result = stage.calibrate(opened, data, output, target_fmr=target_fmr, seed=seed, progress=not quiet)
    _print_points(result)
    click.echo(f"\ncheckpoint {output}")


@click.command()
@click.argument("checkpoint")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="The .npz to write: arrays `paths` and `embeddings`.")
@_quiet
def embed(checkpoint: str, folder: Path, output: Path, quiet: bool) -> None:
    """Embed every image below DIR with CHECKPOINT; what is no image is skipped and counted."""
    from training import evaluate as stage

    encoder = stage.open_encoder(format_1.load(checkpoint))
    if output.is_dir():
        raise UsageError(f"{output} is a directory. Give the name of a file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".tmp")
    with unfinished.open("wb") as file:
        paths, embeddings_ND, skipped = stage.embed_folder(encoder, folder, progress=not quiet)
        np.savez(file, paths=np.array(paths, dtype=np.str_), embeddings=embeddings_ND)
    unfinished.replace(output)
    click.echo(f"{len(paths):,} embeddings in {output}; {skipped:,} files skipped that are no image")


def _print_points(checkpoint: Checkpoint) -> None:
    description = checkpoint.description
    click.echo("\ntarget FMR   threshold   FMR measured   FNMR measured   false matches")
    for point in description.operating_points:
        if point.supported and point.threshold is not None:
            click.echo(
                f"{point.target_fmr:<12g} {point.threshold:<11.4f} {_percent(point.fmr):<14} "
                f"{_percent(point.fnmr):<15} {point.false_matches:,}"
            )
        else:
            click.echo(f"{point.target_fmr:<12g} not supported by so few identities")
    facts = description.calibration
    click.echo(
        f"measured on {facts.identities} unseen identities, {facts.genuine_pairs:,} genuine and "
        f"{facts.impostor_pairs:,} impostor pairs; EER {_percent(facts.eer)}"
    )
    curves = checkpoint.curves()
    at = int(np.searchsorted(curves["distance"], description.threshold + 1e-7, side="right")) - 1
    click.echo(
        f"threshold {description.threshold:.4f}, from {description.threshold_source}: "
        f"FMR {_percent(float(curves['fmr_all_1'][at]))}, FNMR {_percent(float(curves['fnmr_all_1'][at]))} measured"
    )
    if facts.note:
        click.echo(facts.note)
