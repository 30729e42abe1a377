"""A recipe: its file, its options, its limits; and what is read off the images where it leaves a choice open."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.errors import UsageError
from tests.files import BACKGROUND
from tests.service import diptych
from training.cli import train
from training.data.survey import complete_recipe
from training.recipe import Recipe, read_recipe


def test_every_choice_is_an_option_with_words_and_a_section() -> None:
    """The help teaches all of them."""
    shown = CliRunner().invoke(train, ["--help"], terminal_width=100).output
    for name, field in Recipe.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description
    for section in ("Images:", "Encoder:", "Loss:", "Batches:", "Augmentation:", "Optimisation:", "Splits:"):
        assert section in shown


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    """And the bundled one goes by its name."""
    path = tmp_path / "mine.toml"
    path.write_text('margin = 0.7\nepochs = 3\npooling = "gem"\n')
    recipe = read_recipe(str(path), {"epochs": 5})
    assert (recipe.margin, recipe.epochs, recipe.pooling, recipe.seed) == (0.7, 5, "gem", 0)
    assert read_recipe("omniglot", {}).quarter_turns
    assert read_recipe(None, {}) == Recipe()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("margin = 3", "margin"),
        ('margin = "often"', "margin"),
        ("margins = 1", "margins"),
        ("epochs = 0", "epochs"),
        ("learning_rate = nan", "learning_rate"),
        ("epochs", "can't be read"),
        ('backbone = "vgg"', "backbone"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    """The file, the setting, what is allowed."""
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as problem:
        read_recipe(str(path), {})
    assert "bad.toml" in str(problem.value)
    done = diptych("train", BACKGROUND, "--output", tmp_path / "out", "--recipe", path, "--quiet")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@given(st.floats(0.01, 2), st.integers(1, 10**6), st.sampled_from(["mean", "gem", "grid"]))
def test_a_recipe_survives_being_written_down(margin: float, epochs: int, pooling: str) -> None:
    """What the checkpoint records rebuilds it."""
    recipe = Recipe().but(margin=margin, epochs=epochs, pooling=pooling)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def photographs(root: Path, size: tuple[int, int], colour: bool) -> Path:
    """A folder of smooth gradients: what a photograph has and a drawing has not."""
    for number in range(4):
        picture = Image.linear_gradient("L").rotate(37 * number).resize(size)
        (root / f"i{number}").mkdir(parents=True)
        if colour:
            picture = Image.merge("RGB", (picture, picture.rotate(90).resize(size), picture))
        picture.save(root / f"i{number}" / "0.png")
    return root


def test_open_choices_are_read_off_the_images(tmp_path: Path) -> None:
    """Small grey line art; large colour photographs of one shape; what is given stays."""
    drawings = complete_recipe(BACKGROUND, Recipe())
    assert (drawings.channels, drawings.image_size, drawings.aspect, drawings.augment) == (1, 64, "pad", "lines")
    photos = complete_recipe(photographs(tmp_path / "a", (400, 300), colour=True), Recipe())
    assert (photos.channels, photos.image_size, photos.aspect, photos.augment) == (3, 128, "stretch", "photos")
    grey = complete_recipe(photographs(tmp_path / "b", (300, 300), colour=False), Recipe(backbone="resnet18"))
    assert (grey.channels, grey.image_size, grey.aspect, grey.augment) == (1, 192, "pad", "photos")
    given = Recipe(channels=3, image_size=40, aspect="crop", augment="none")
    assert complete_recipe(BACKGROUND, given) == given
