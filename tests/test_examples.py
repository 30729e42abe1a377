"""Worked examples in docstrings: all of them run, and show what the code gives."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from tests.import_graph import modules

PROMPTS = {
    name: count
    for name, path in modules(Path(__file__).parent.parent).items()
    if (count := len(re.findall(r"^ *>>> ", path.read_text(), re.MULTILINE)))
}


def test_there_are_examples() -> None:
    """A test that looks at nothing would always pass."""
    assert {"app.checkpoint.matching", "app.checkpoint.calibration", "training.calibration.rates"} <= set(PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_the_examples_of_a_module_hold(name: str) -> None:
    """Each of them: one that doctest would not find counts as a failure."""
    found = doctest.testmod(importlib.import_module(name))
    assert (found.failed, found.attempted) == (0, PROMPTS[name])
