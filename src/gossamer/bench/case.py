"""A case of the benchmark: a job, and the contenders that do it."""

from collections.abc import Callable
from dataclasses import dataclass

Step = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One way to do a case's job.

    Args:
        prepare: Makes, for a length, a step that takes nothing and does the job once.
        fault: Says why its numbers are wrong, so that it may not be timed; None where they are right.
        missing: Why it cannot run on this machine, or None.
        needs: Bytes that it is known to take at a length.
    """

    name: str
    prepare: Callable[[int], Step]
    fault: Callable[[], str | None]
    missing: str | None = None
    needs: Callable[[int], int] = lambda length: 0


@dataclass(frozen=True)
class Case:
    """A job, the lengths at which it is done and the contenders that do it."""

    name: str
    lengths: tuple[int, ...]
    contenders: tuple[Contender, ...]
