"""Progress: a bar on a terminal, few lines in a log file, nothing where nobody asked."""

import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from app.progress import progress_bar, track

SCRIPT = "from app.progress import track\nfor _ in track(range(5), 'counting', 'steps'): pass"


def test_a_terminal_gets_a_bar() -> None:
    """Redrawn in place, to the last step."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", SCRIPT], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\r" in shown and "counting" in shown and "5/5" in shown


def test_a_log_file_gets_lines_more_and_more_seldom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A day's run leaves some fifty, without a carriage return; the last says that all is done."""
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress_bar("training", "steps", 40_000) as bar:
        for _ in range(40_000):
            bar.update()
        bar.set_postfix(loss="0.1")
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert 10 < len(lines) < 60
    assert all(line.startswith("training: ") and "\r" not in line and line.endswith("\n") for line in lines)
    assert "40,000 of 40,000 steps" in lines[-1] and lines[-1].endswith("loss=0.1\n")


def test_a_short_task_leaves_no_line_and_a_quiet_one_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that is done at once needs no progress."""
    assert list(track([1, 2, 3], "counting", "steps")) == [1, 2, 3]
    with progress_bar("counting", "steps", 3, enabled=False) as bar:
        bar.update(3)
        bar.set_postfix(loss="0.1")
    assert capsys.readouterr().err == ""
