"""How long steps take that are queued one behind the other, as in training."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist

from .figures import slowest


def seconds_each(step: Callable[[], object], device: torch.device, *, steps: int, rounds: int = 5) -> float:
    """The median over rounds of the mean of some steps, of the slowest process; the first round warms up."""
    return slowest(median([_round(step, device, steps) for _ in range(rounds + 1)][1:]))


def _round(step: Callable[[], object], device: torch.device, steps: int) -> float:
    dist.barrier()
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - began) / steps
    torch.cuda.synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    step()  # fills the queue: what follows waits for no host
    start.record()
    for _ in range(steps):
        step()
    end.record()
    torch.cuda.synchronize(device)
    return 1e-3 * start.elapsed_time(end) / steps
