"""The commands of training: they parse, call, and print. Only `train` needs PyTorch."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import click
import numpy as np

from app.checkpoint.format import Checkpoint, RuntimeName
from app.checkpoint.store import load_checkpoint
from app.errors import TrainingFailed, UsageError
from app.image.policy import Preprocessing
from training.data.dataset import image_files
from training.options import Finite, WithSections, recipe_options
from training.recipe import read_recipe

# How large `lint` decodes images where no encoder says.
THUMBNAILS = Preprocessing(height=64, width=64, channels=1, aspect="pad")
# Places that `lint` prints for each finding.
SHOWN = 20
FOLDER = click.Path(path_type=Path)


def _percent(value: float | None, ends: tuple[float, float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" + (f" ({100 * ends[0]:.2f} to {100 * ends[1]:.2f})" if ends else "")


_quiet = click.option("--quiet", is_flag=True, help="No progress bars.")
_runtime = click.option(
    "--runtime",
    type=click.Choice(get_args(RuntimeName)),
    default="onnxruntime",
    show_default=True,
    envvar="DIPTYCH_RUNTIME",
    help="What computes embeddings: take the one that will serve.",
)


@click.command(cls=WithSections)
@click.argument("data", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="Directory of the checkpoint; it must be new.")
@click.option("--recipe", help="A TOML file with the choices below, or a bundled one: omniglot. Options win over it.")
@click.option("--resume", is_flag=True, help="Go on with the run that was interrupted in OUTPUT, to the same result.")
@click.option("--despite-lint", is_flag=True, help="Train although `diptych lint` finds what makes figures dishonest.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
              help="Where to compute.")  # fmt: skip
@click.option("--no-images", is_flag=True, help="Leave your images out of the report: figures and curves only.")
@_quiet
@recipe_options
def train(
    data: Path,
    output: Path,
    recipe: str | None,
    resume: bool,
    despite_lint: bool,
    device: str,
    no_images: bool,
    quiet: bool,
    **choices: Any,
) -> None:
    """Train an encoder on the folder tree DATA and write its checkpoint.

    Every folder that directly holds images is one identity, named by its path; its parent folder is its
    group. Some identities are kept from training: some choose the threshold, others measure how often it
    errs. The report (plots, metrics.json, index.html) goes to OUTPUT/report and shows some of your images.

    \b
    diptych train photos/ --output runs/mine
    diptych serve --checkpoint runs/mine

    \b
    Several processes, which share each batch (several machines need one disk between them):
    torchrun --nproc-per-node 2 --no-python diptych train photos/ --output runs/mine
    """
    chosen = read_recipe(recipe, {name: value for name, value in choices.items() if value is not None})
    image_files(data)  # mistakes first: PyTorch takes seconds to import
    try:
        import torch

        from training.run.resume import STATE
        from training.run.train import Options
        from training.run.train import train as run
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"Training is not installed ({missing.name} is missing): `make env-training`, or install diptych[training]."
        ) from None
    options = Options(
        # a resumed run ends where a whole one does, so this repeats either
        command=shlex.join(["diptych", *(word for word in sys.argv[1:] if word != "--resume")]),
        device=device,
        resume=resume,
        despite_lint=despite_lint,
        report_images=not no_images,
        progress=not quiet,
    )
    try:
        checkpoint = run(data, output, chosen, options)
    except KeyboardInterrupt:
        if (output / STATE).exists():
            click.echo(f"\nThe same command with --resume goes on from the last whole epoch, in {output}.", err=True)
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise TrainingFailed(
            "The memory does not suffice. Smaller: --identities-per-batch, --images-per-identity, --image-size, "
            "--width, or another --backbone."
        ) from None
    if checkpoint is None:
        return  # another process writes it
    _print_points(checkpoint)
    for warning in checkpoint.description.training["warnings"]:
        click.echo(f"note: {warning}")
    click.echo(f"\ncheckpoint {output}, report {output / 'report' / 'index.html'}")


@click.command()
@click.argument("data", type=FOLDER)
@click.option("--checkpoint", help="Look for mislabelled images with this encoder (a directory or a bundled name); it "
              "should know such images. Without one, thumbnails find the blatant ones.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit with 1 for any finding, not only for those that training refuses.")
@_quiet
def lint(data: Path, checkpoint: str | None, strict: bool, quiet: bool) -> None:
    """Look at the folder tree DATA for what would make figures dishonest or an encoder worse.

    \b
    Unreadable files; the same or nearly the same picture under two identities or twice in one;
    identities with one image; images that look mislabelled; folders of a split side by side.

    Exits with 0 if training would take the data, with 1 if it would refuse, with 2 on a mistake.
    """
    from training import evaluate as stage
    from training.data.dataset import read_dataset
    from training.data.lint import look

    encoder = None if checkpoint is None else stage.open_encoder(load_checkpoint(checkpoint))
    dataset = read_dataset(data, THUMBNAILS if encoder is None else encoder.preprocessing, progress=not quiet)
    embeddings_ND = None if encoder is None else stage.embed_images(encoder, dataset.images_NHWC, progress=not quiet)
    findings = look(dataset, embeddings_ND=embeddings_ND, progress=not quiet)
    click.echo(f"{len(dataset):,} images of {len(dataset.identities):,} identities in {len(dataset.groups):,} groups")
    for finding in findings:
        click.echo(f"{'REFUSED' if finding.refuses else 'warning'}  {finding.code}: {finding.words}")
        for place in finding.places[:SHOWN]:
            click.echo(f"           {place}")
        if len(finding.places) > SHOWN:
            click.echo(f"           and {len(finding.places) - SHOWN:,} more")
    refused = [finding for finding in findings if finding.refuses]
    if not findings:
        click.echo("nothing found")
    if refused or (strict and findings):
        raise SystemExit(1)


@click.command()
@click.argument("checkpoint")
@click.option("--data", type=FOLDER, help="Folder tree, one folder per identity: all pairs are judged.")
@click.option("--pairs", type=FOLDER, help="CSV with columns image_a,image_b,same (1 or 0); needs --root.")
@click.option("--root", type=FOLDER, help="Folder that the paths in --pairs are relative to.")
@click.option("--output", type=FOLDER, help="Directory for metrics.json.")
@_quiet
@_runtime
def evaluate(
    checkpoint: str,
    data: Path | None,
    pairs: Path | None,
    root: Path | None,
    output: Path | None,
    quiet: bool,
    runtime: RuntimeName,
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
    opened = load_checkpoint(checkpoint)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    if data is not None:
        result = stage.evaluate_folder(opened, data, runtime=runtime, progress=not quiet)
    elif pairs is not None and root is not None:
        result = stage.evaluate_pairs(opened, pairs, root, runtime=runtime, progress=not quiet)
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
@_runtime
@click.option(
    "--split-by",
    type=click.Choice(["identity", "group"]),
    default="identity",
    show_default=True,
    help="What is kept together in one half, and drawn anew for the intervals: say `group` (parent folders) if what "
    "you will judge comes from groups that are not in DATA.",
)
def calibrate(
    checkpoint: str,
    data: Path,
    output: Path,
    target_fmr: float,
    seed: int,
    quiet: bool,
    runtime: RuntimeName,
    split_by: Literal["identity", "group"],
) -> None:
    """Measure thresholds and error rates of CHECKPOINT anew, on images like those it will judge.

    Half of the identities choose the threshold, the other half measure it; the encoder stays as it is.
    Intervals are of 95 %, from drawing anew which identities (or groups) were measured.
    """
    from training import evaluate as stage

    opened = load_checkpoint(checkpoint)
    result = stage.calibrate(
        opened, data, output, target_fmr=target_fmr, seed=seed, split_by=split_by, runtime=runtime, progress=not quiet
    )
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

    encoder = stage.open_encoder(load_checkpoint(checkpoint))
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
    click.echo("\ntarget FMR   threshold   FMR measured (95 %)         FNMR measured (95 %)        false matches")
    for point in description.operating_points:
        if point.supported and point.threshold is not None:
            click.echo(
                f"{point.target_fmr:<12g} {point.threshold:<11.4f} {_percent(point.fmr, point.fmr_ci95):<27} "
                f"{_percent(point.fnmr, point.fnmr_ci95):<27} {point.false_matches:,}"
            )
        else:
            click.echo(f"{point.target_fmr:<12g} not supported by so few identities")
    facts = description.calibration
    click.echo(
        f"measured on {facts.identities} unseen identities, {facts.genuine_pairs:,} genuine and "
        f"{facts.impostor_pairs:,} impostor pairs; EER {_percent(facts.eer)}"
    )
    curves = checkpoint.curves()
    supported = "supported_1" not in curves or description.threshold >= curves["supported_1"][1] - 1e-6
    at = int(np.searchsorted(curves["distance"], description.threshold + 1e-7, side="right")) - 1
    click.echo(
        f"threshold {description.threshold:.4f}, from {description.threshold_source}: "
        f"FMR {_percent(float(curves['fmr_all_1'][at]) if supported else None)}, "
        f"FNMR {_percent(float(curves['fnmr_all_1'][at]) if facts.genuine_pairs else None)} measured"
    )
    if facts.likelihood_ratio and facts.cllr is not None and facts.cllr_min is not None:
        units = "groups" if facts.intervals_over == "group" else "identities"
        click.echo(
            f"likelihood ratios by the {facts.likelihood_ratio} fit: Cllr {facts.cllr:.3f} bits, at best "
            f"{facts.cllr_min:.3f}; intervals over {facts.units} {units}"
        )
    if facts.note:
        click.echo(facts.note)
