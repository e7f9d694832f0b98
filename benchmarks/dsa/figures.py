"""One figure of a table, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch

from gossamer.bench.clock import clock_for
from gossamer.measure import peak_memory

GIB = 2**30
LARGEST_ERROR = 0.01
"""Of results in bfloat16."""


@dataclass(frozen=True)
class Figure:
    """What one contender took for one case."""

    section: str
    case: str
    contender: str
    tokens: int
    seconds: float | None = None
    operations: float | None = None
    """Of pairs that are seen; what else a contender computes does not count."""
    peak: int | None = None
    """Bytes above those of the inputs."""
    error: float | None = None
    """Of what was timed, against float64, as a share of the whole."""
    absence: str | None = None
    """Why there is no figure."""

    @property
    def teraflops(self) -> float | None:
        """Useful operations a second."""
        if self.seconds is None or self.operations is None:
            return None
        return self.operations / self.seconds / 1e12


def timed(figure: Figure, step: Callable[[], object], *, device: torch.device, repeats: int) -> Figure:
    """The figure with the step's time, the median of a few after one that is not counted, and its memory."""
    with peak_memory(device) as peak:
        step()
    clock = clock_for(device)
    seconds = median(clock(step) for _ in range(repeats))
    return replace(figure, seconds=seconds, peak=peak.bytes)


def error_of(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of the difference, in norms of the exact."""
    return ((found.double() - exact).norm() / exact.norm()).item()


def judged(figure: Figure) -> Figure | None:
    """The figure without a time where its results are wrong."""
    if figure.error is not None and figure.error <= LARGEST_ERROR:
        return None
    return replace(figure, absence=f"it is {figure.error:.1e} off")
