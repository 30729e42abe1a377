"""The commands of training: they parse, call, and print. Each imports what it needs when it runs."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from app.errors import TrainingFailed, UsageError
from training.options import (
    FOLDER,
    CommandWithRecipe,
    Finite,
    quiet_option,
    runtime_option,
    training_packages,
)


@click.command(cls=CommandWithRecipe, short_help="Train an encoder on a folder of images.")
@click.argument("data", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="Directory of the new checkpoint. It must be new or empty.")
@click.option(
    "--recipe",
    help="TOML file with any of the choices below, or the name of a bundled one (omniglot). Options override it.",
)
@click.option("--resume", is_flag=True, help="Continue the interrupted run in OUTPUT, with the same result.")
@click.option("--despite-lint", is_flag=True, help="Train although `diptych lint` refuses the data.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Device to train on.",
)
@click.option("--no-images", is_flag=True, help="Leave your images out of the report: only figures and curves.")
@quiet_option
def train(
    data: Path,
    output: Path,
    recipe: str | None,
    no_images: bool,
    quiet: bool,
    resume: bool,
    device: str,
    despite_lint: bool,
    **choices: Any,
) -> None:
    """Train an encoder on the folder tree DATA and write its checkpoint to OUTPUT.

    Every folder that directly holds images is one identity, named by its path; its parent folder is its group. Some
    identities are not trained on: some of these are used to choose the threshold, the others to measure its error
    rates. OUTPUT/report holds plots, metrics.json and index.html, and shows some of your images.

    \b
    diptych train photos/ --output runs/mine
    diptych serve --checkpoint runs/mine

    \b
    Two processes that share each batch (on several machines, OUTPUT must be on a shared disk):
    torchrun --nproc-per-node 2 --no-python diptych train photos/ --output runs/mine
    """
    from training.data.dataset import image_files
    from training.recipe import read_recipe

    chosen = read_recipe(recipe, {name: value for name, value in choices.items() if value is not None})
    image_files(data)  # mistakes first: PyTorch takes seconds to import
    with training_packages("train"):
        import torch

        from training.run.resume import STATE
        from training.train import RunOptions, train_encoder
    options = RunOptions(
        # without --resume, so that it repeats the whole run
        command=shlex.join(["diptych", *(word for word in sys.argv[1:] if word != "--resume")]),
        device=device,
        resume=resume,
        despite_lint=despite_lint,
        report_images=not no_images,
        progress=not quiet,
    )
    try:
        checkpoint = train_encoder(data, output, chosen, options)
    except KeyboardInterrupt:
        if (output / STATE).exists():
            click.echo(f"\nInterrupted. To continue, run the same command with --resume ({output}).", err=True)
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise TrainingFailed(
            "Not enough memory. Use smaller --identities-per-batch, --images-per-identity, --image-size or --width, or "
            "another --backbone."
        ) from None
    if checkpoint is None:
        return  # another process writes and prints it
    _print_summary(checkpoint)
    for warning in checkpoint.description.training["warnings"]:
        click.echo(f"note: {warning}")
    click.echo(f"\ncheckpoint {output}, report {output / 'report' / 'index.html'}")


@click.command(short_help="Check a folder of images before training.")
@click.argument("data", type=FOLDER)
@click.option(
    "--checkpoint",
    help="Checkpoint (a directory or a bundled name) for finding mislabelled images. It should be trained on similar "
    "images. Without it, thumbnails are compared, which only finds obvious cases.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 for any finding, not only for one that training refuses.")
@quiet_option
def lint(data: Path, checkpoint: str | None, strict: bool, quiet: bool) -> None:
    """Check the folder tree DATA for mistakes that distort error rates or make an encoder worse.

    \b
    It finds unreadable files and blank images; the same or nearly the same picture under
    two identities, or twice in one; identities with only one image; images that look
    mislabelled; and folders such as train and test with the same identities.

    Exits with 0 if training would accept the data, 1 if it would refuse it, 2 for a mistake in the command.
    """
    from app.checkpoint.store import load_checkpoint
    from training.data.dataset import read_dataset
    from training.data.lint import THUMBNAILS, finding_lines, lint_dataset
    from training.embed import embed_images, open_encoder

    encoder = None if checkpoint is None else open_encoder(load_checkpoint(checkpoint))
    dataset = read_dataset(data, THUMBNAILS if encoder is None else encoder.preprocessing, progress=not quiet)
    embeddings_ND = None if encoder is None else embed_images(encoder, dataset.images_NHWC, progress=not quiet)
    findings = lint_dataset(dataset, embeddings_ND=embeddings_ND, progress=not quiet)
    click.echo(f"{len(dataset):,} images of {len(dataset.identities):,} identities in {len(dataset.groups):,} groups")
    for line in finding_lines(findings):
        click.echo(line)
    if any(finding.refuses for finding in findings) or (strict and findings):
        raise SystemExit(1)


@click.command(short_help="Measure a checkpoint's error rates on other images.")
@click.argument("checkpoint")
@click.option("--data", type=FOLDER, help="Folder tree with one folder per identity. All pairs are compared.")
@click.option("--pairs", type=FOLDER, help="CSV file with columns image_a,image_b,same (1 or 0). Needs --root.")
@click.option("--root", type=FOLDER, help="Folder that the paths in --pairs are relative to.")
@click.option("--output", type=FOLDER, help="Directory to write metrics.json to.")
@quiet_option
@runtime_option
def evaluate(
    checkpoint: str,
    data: Path | None,
    pairs: Path | None,
    root: Path | None,
    output: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure the error rates of CHECKPOINT (a directory or a bundled name) on images that it was not trained on.

    \b
    diptych evaluate omniglot --data others/
    diptych evaluate runs/mine --pairs pairs.csv --root photos/ --output runs/figures
    """
    if (data is None) == (pairs is None):
        raise UsageError("Give either --data FOLDER, or --pairs FILE.csv with --root FOLDER.")
    if data is not None and root is not None:
        raise UsageError("--root belongs to --pairs. Leave it out with --data.")
    if pairs is not None and root is None:
        raise UsageError("--pairs needs --root, the folder that its paths are relative to.")
    from app.checkpoint.store import load_checkpoint
    from training.evaluate import evaluate_folder, evaluate_pairs
    from training.summary import evaluation_lines

    opened = load_checkpoint(checkpoint)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    if pairs is not None and root is not None:
        result = evaluate_pairs(opened, pairs, root, progress=not quiet, **options)
    elif data is not None:
        result = evaluate_folder(opened, data, progress=not quiet, **options)
    for line in evaluation_lines(result.metrics, opened.description.threshold_source, result.note):
        click.echo(line)
    if output is not None:
        document = {**result.metrics, "model_id": opened.description.model_id, "note": result.note}
        (output / "metrics.json").write_text(json.dumps(document, indent=2) + "\n")


@click.command(short_help="Choose thresholds and measure error rates again, on your images.")
@click.argument("checkpoint")
@click.option("--data", type=FOLDER, required=True, help="Folder tree with one folder per identity.")
@click.option("--output", type=FOLDER, required=True, help="Directory of the new checkpoint. It must be new or empty.")
@click.option(
    "--target-fmr",
    type=Finite(0, 1, min_open=True, max_open=True),
    metavar="X",
    default=0.01,
    show_default=True,
    help="False-match rate that the default threshold is chosen for.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    metavar="N",
    default=0,
    show_default=True,
    help="Random seed of the split into two halves.",
)
@quiet_option
@runtime_option
@click.option(
    "--split-by",
    type=click.Choice(["identity", "group"]),
    default="identity",
    show_default=True,
    help="What is split into halves, and redrawn for the intervals: single identities, or whole groups (parent "
    "folders). Use `group` if you will compare images from groups that are not in DATA.",
)
def calibrate(checkpoint: str, data: Path, output: Path, quiet: bool, **options: Any) -> None:
    """Choose the thresholds of CHECKPOINT and measure its error rates again, on images like those you will compare.

    Half of the identities are used to choose the thresholds, the other half to measure the error rates. The encoder
    does not change. Intervals are 95 % bootstrap intervals over the measured identities (or groups).
    """
    with training_packages("calibrate"):
        from app.checkpoint.store import load_checkpoint
        from training.recalibrate import recalibrate

    result = recalibrate(load_checkpoint(checkpoint), data, output, progress=not quiet, **options)
    _print_summary(result)
    click.echo(f"\ncheckpoint {output}")


@click.command(short_help="Write the embeddings of all images in a folder.")
@click.argument("checkpoint")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="The .npz file to write: arrays `paths` and `embeddings`.")
@quiet_option
def embed(checkpoint: str, folder: Path, output: Path, quiet: bool) -> None:
    """Embed every image below DIR with CHECKPOINT. Files that are not images are skipped and counted."""
    from app.checkpoint.store import load_checkpoint
    from training.embed import open_encoder, write_embeddings

    encoder = open_encoder(load_checkpoint(checkpoint))
    count, skipped = write_embeddings(encoder, folder, output, progress=not quiet)
    click.echo(f"{count:,} embeddings in {output}; {skipped:,} files skipped that are not images")


def _print_summary(checkpoint: Any) -> None:
    from training.summary import summary_lines

    click.echo()
    for line in summary_lines(checkpoint):
        click.echo(line)
