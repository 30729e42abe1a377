"""How far a long task has come: a bar on a terminal, a plain line now and then in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Never, TypeVar

from tqdm import tqdm

T = TypeVar("T")
# The first line comes after this many seconds. Later ones come when a fifth more time has passed, so that even a run of
# a day leaves about fifty.
SECONDS, GROWTH = 10.0, 1.2


class ProgressLines:
    """Lines on standard error in place of a bar. A short task without figures leaves none."""

    def __init__(self, title: str, unit: str, total: int | None, initial: int) -> None:
        self.title, self.unit, self.total, self.count = title, unit, total, initial
        self.figures = ""
        self.started, self.due = time.monotonic(), SECONDS

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *problem: object) -> None:
        if self.figures or time.monotonic() - self.started >= SECONDS:
            self._print()

    def update(self, n: int = 1) -> None:
        """Count `n` more."""
        self.count += n
        seconds = time.monotonic() - self.started
        if seconds >= self.due:
            self._print()
            self.due = max(seconds + SECONDS, GROWTH * seconds)

    def set_postfix(self, **figures: str) -> None:
        """Figures to show from the next line on."""
        self.figures = "".join(f", {name}={figure}" for name, figure in figures.items())

    def _print(self) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        total = "" if self.total is None else f" of {self.total:,}"
        line = f"{self.title}: {self.count:,}{total} {self.unit} in {minutes}:{seconds:02} min{self.figures}\n"
        sys.stderr.write(line)
        sys.stderr.flush()


def progress_bar(
    title: str, unit: str, total: int | None = None, *, initial: int = 0, enabled: bool = True
) -> "tqdm[Never] | ProgressLines":
    """Show on standard error how far a task has come: as a bar on a terminal, else as lines; nothing if not `enabled`.

    A context with `update` and `set_postfix`. `unit` is a plural, such as `images`.
    """
    if enabled and not sys.stderr.isatty():
        return ProgressLines(title, unit, total, initial)
    return tqdm(desc=title, unit=f" {unit}", total=total, initial=initial, smoothing=0.05, disable=not enabled)


def track(items: Iterable[T], title: str, unit: str, *, enabled: bool = True) -> Iterator[T]:
    """The items one after another, and how many are done, as `progress_bar` shows it."""
    with progress_bar(title, unit, len(items) if isinstance(items, Sized) else None, enabled=enabled) as bar:
        for item in items:
            yield item
            bar.update()
