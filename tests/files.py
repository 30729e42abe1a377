"""What every test may use: real drawings, and a checkpoint that every version has to read."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
BACKGROUND = DATA / "omniglot" / "background"
EVALUATION = DATA / "omniglot" / "evaluation"
GOLDEN = DATA / "checkpoint_format_1"
# The bundled checkpoint whose calibration has everything that a calibration can have: what is expected of its figures
# does not hang on how a training run comes out on one processor or another.
CALIBRATED = "omniglot"


def drawings(character: str) -> list[Path]:
    """Drawings of one character that no checkpoint of the tests was trained on."""
    found = sorted((EVALUATION / character).glob("*.png"))
    assert found, character
    return found
