"""The commands of training are cheap to load, and their options are those of the service."""

import subprocess
import sys
from typing import get_args

from app.checkpoint.format import RuntimeName
from training import options

SCRIPT = "import sys, training.cli; print(*{name.split('.')[0] for name in sys.modules})"


def test_loading_a_command_imports_nothing_heavy() -> None:
    """The list of commands shows a line of each: neither NumPy nor pydantic is needed for that."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert not loaded & {"numpy", "pydantic", "pydantic_core", "PIL", "onnxruntime", "torch", "scipy", "tqdm", "faiss"}


def test_runtimes_are_those_of_the_service() -> None:
    """The list stands twice, since the service's is not cheap to load."""
    assert get_args(options.RuntimeName) == get_args(RuntimeName)
