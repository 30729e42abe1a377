"""The look at a data set before training: what it finds in real drawings that were spoilt on purpose."""

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from app.checkpoint.format import Checkpoint
from app.errors import UsageError
from tests.files import BACKGROUND, drawings
from tests.service import diptych, diptych_in_process
from training.recipe import Recipe
from training.train import RunOptions, train_encoder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty characters, ten drawings of each, with nothing wrong."""
    return Path(shutil.copytree(BACKGROUND, tmp_path / "data"))


def lint(data: Path, *options: str | Path) -> tuple[int, str]:
    done = diptych_in_process("lint", data, *options, "--quiet")
    assert done.stderr == "" and "Traceback" not in done.stdout
    return done.returncode, done.stdout


def first(data: Path, character: str) -> Path:
    return sorted((data / character).glob("*.png"))[0]


def train(data: Path, output: Path, *, despite_lint: bool = False) -> Checkpoint | None:
    """A small real run in this process."""
    recipe = Recipe(epochs=1, width=0.25, image_size=16, threads=1)
    return train_encoder(data, output, recipe, RunOptions(despite_lint=despite_lint, progress=False))


def test_clean_data_passes(data: Path) -> None:
    """Nothing found, exit status 0, also where every finding counts."""
    assert lint(data, "--strict") == (0, "400 images of 40 identities in 4 groups\nnothing found\n")


def test_one_drawing_under_two_identities_is_refused_by_lint_and_by_training(data: Path, tmp_path: Path) -> None:
    """With both names; training says how to go on, and does if told to."""
    source, target = first(data, "Greek/character01"), data / "Greek" / "character02" / "copy.png"
    shutil.copy(source, target)
    status, words = lint(data)
    assert status == 1
    assert "REFUSED  exact_across_identities: 1 times the same file under two identities" in words
    assert f"Greek/character01/{source.name} = Greek/character02/copy.png" in words
    with pytest.raises(UsageError, match=r"would be wrong.*copy\.png.*--despite-lint"):
        train(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    trained = train(data, tmp_path / "out", despite_lint=True)
    assert trained is not None
    assert any("copy.png" in note for note in trained.description.training["warnings"])


def test_a_split_inside_an_identity_is_refused_and_a_vehicle_called_train_is_not(data: Path) -> None:
    """`X/train` beside `X/test`; but `things/train` beside `things/car`."""
    images = sorted((data / "Greek" / "character01").glob("*.png"))
    for part, own in (("train", images[:5]), ("test", images[5:])):
        (data / "x" / part).mkdir(parents=True)
        for path in own:
            path.rename(data / "x" / part / path.name)
    status, words = lint(data)
    assert status == 1 and "x/test and x/train" in words
    shutil.rmtree(data / "x")
    (data / "things").mkdir()
    (data / "Latin").rename(data / "things" / "train")
    (data / "Sanskrit").rename(data / "things" / "car")
    assert "split_folders" not in lint(data)[1]


def test_blank_sheets_are_named(data: Path) -> None:
    """The service refuses them, so they should teach nothing."""
    Image.new("L", (105, 105), 255).save(data / "Greek" / "character01" / "blank.png")
    assert "blank: 1 images are blank" in lint(data)[1]


def test_nearly_the_same_picture_is_found_across_identities_and_within_one(data: Path) -> None:
    """Saved again as a JPEG of another size: other bytes, the same drawing."""
    places = (("Greek/character01", "Greek/character02"), ("Latin/character01", "Latin/character01"))
    for number, (source, target) in enumerate(places):
        with Image.open(first(data, source)) as image:
            image.convert("L").resize((160, 160)).save(data / target / f"again{number}.jpg", quality=80)
    status, words = lint(data)
    assert status == 0, "a warning, since two people may draw alike"
    assert "near_across_identities: 1 times" in words and "again0.jpg" in words
    assert "near_within_identity: 1 times" in words and "again1.jpg" in words
    assert lint(data, "--strict")[0] == 1


def test_unreadable_files_and_identities_with_one_image_are_named(data: Path) -> None:
    """With counts."""
    (data / "Greek" / "notes.txt").write_text("no image")
    (data / "Greek" / "alone").mkdir()
    picture = Image.new("L", (60, 60), 255)
    ImageDraw.Draw(picture).text((5, 20), "alone", fill=0)
    picture.save(data / "Greek" / "alone" / "one.png")
    status, words = lint(data)
    assert status == 0
    assert "unreadable: 1 files are not readable images\n           Greek/notes.txt" in words
    assert "single_image: 1 of 41 identities have only one image" in words and "Greek/alone" in words


def test_a_mislabelled_image_is_found_by_an_encoder_that_knows_such_images(data: Path) -> None:
    """A drawing moved to another character's folder."""
    moved = sorted((data / "Greek" / "character01").glob("*.png"))[3]
    moved.rename(data / "Greek" / "character05" / "moved.png")
    status, words = lint(data, "--checkpoint", "omniglot")
    assert status == 0
    assert "mislabelled" in words and "Greek/character05/moved.png (looks like Greek/character01)" in words


def test_mistakes_end_with_one_line(tmp_path: Path) -> None:
    """A folder that isn't there, one without images, a checkpoint that isn't one."""
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((tmp_path / "nowhere",), "is not a folder"),
        ((tmp_path / "empty",), "holds no images"),
        ((BACKGROUND, "--checkpoint", "nonsense"), "no checkpoint"),
    ):
        done = diptych("lint", *arguments, "--quiet")
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_single_drawing_is_data_that_can_be_looked_at(tmp_path: Path) -> None:
    """The smallest set: one image, one identity."""
    (tmp_path / "data" / "a").mkdir(parents=True)
    shutil.copy(drawings("Angelic/character01")[0], tmp_path / "data" / "a")
    assert "single_image" in lint(tmp_path / "data")[1]
