"""Whether the service can do its work: a loop over its resources, for /readyz and for Prometheus."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from app.errors import Unavailable


@dataclass(frozen=True)
class Check:
    """One condition of being ready. `detail` says what was found; `problem` is None where the condition holds."""

    name: str
    detail: str
    problem: Unavailable | None = None


class Checkable(Protocol):
    """A resource that can say whether it works. It looks now; nothing is remembered."""

    def check(self) -> Iterable[Check]: ...


def make_check(name: str, examine: Callable[[], str]) -> Check:
    """The check of this name: passed with what `examine` returns, failed with the `Unavailable` that it raises."""
    try:
        return Check(name, examine())
    except Unavailable as problem:
        return Check(name, problem.detail, problem)


def run_checks(resources: Iterable[Checkable]) -> list[Check]:
    """Every check of every resource, in order: a caller is told the first problem first."""
    return [check for resource in resources for check in resource.check()]
