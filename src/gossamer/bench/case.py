"""A case of the benchmark: a job, and the contenders that do it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .backends import Backends
from .floor import Work

Step = Callable[[], object]
Clock = Callable[[Step], float]


@dataclass(frozen=True)
class Contender:
    """One way to do a case's job.

    Args:
        prepare: Makes, for a length, a step that takes nothing and does the job once.
        fault: Says why its numbers are wrong, so that it may not be timed; None where they are right.
        missing: Why it cannot run on this machine, or None.
        needs: Bytes that it is known to take at a length.
        fault_at: The same as `fault` about the prepared step of one length.
        setup: What it must make for a length before its first step, to be timed apart; None where that is nothing.
        work: The least that the job takes at a length, or None where that is not known.
        backends: What runs it of this library at a length, or None for the others.
    """

    name: str
    prepare: Callable[[int], Step]
    fault: Callable[[], str | None]
    missing: str | None = None
    needs: Callable[[int], int] = lambda length: 0
    fault_at: Callable[[int, Step], str | None] = lambda length, step: None
    setup: Callable[[int], object] | None = None
    work: Callable[[int], Work] | None = None
    backends: Callable[[int], Backends] | None = None


@dataclass(frozen=True)
class Case:
    """A job, the lengths at which it is done, the contenders that do it, and a clock that suits it.

    Without a clock of its own, the time that the device takes counts.
    """

    name: str
    lengths: tuple[int, ...]
    contenders: tuple[Contender, ...]
    clock: Callable[[torch.device], Clock] | None = None
