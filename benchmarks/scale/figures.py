"""One figure of a run of several processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Figure:
    """What one case took, of the process that was slowest."""

    section: str
    case: str
    processes: int
    tokens: int
    """Of all processes together; of links, bytes that each one sends."""
    seconds: float
    alone: float | None = None
    """Seconds that one process takes for as many tokens as each has here, measured in the same run."""
    exchanging: float | None = None
    """Seconds of a step in which NCCL's kernels run."""
    exposed: float | None = None
    """Those of them in which no other kernel does."""
    nbytes: int | None = None
    """Bytes that a process sends in a step."""
    peak: int | None = None
    """Bytes of memory at most."""
    share_of_peak: float | None = None
    """Operations a second, of those that the device's maker names."""
    error: float | None = None
    """Of the gradients that are furthest off, as a share of those in float64."""
    commit: str | None = None
    """The code that was measured: cases of a section may be measured again one by one."""

    @property
    def efficiency(self) -> float | None:
        """One process's time over this one: 1 where more processes cost nothing."""
        return None if self.alone is None else self.alone / self.seconds


def slowest(seconds: float) -> float:
    """The longest of what all processes measured."""
    times: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(times, seconds)
    return max(times)
