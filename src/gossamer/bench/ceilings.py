"""What this machine reaches at most, measured in the same run as everything that is held against it."""

import statistics
from functools import lru_cache

import torch

from .case import Step
from .clock import clock_for
from .floor import Ceilings

MIB = 2**20


@lru_cache(maxsize=8)
def measure_ceilings(device: torch.device, dtype: torch.dtype, threads: int) -> Ceilings:
    """Both rates on random data, measured once in a process for each device, number format and thread count."""
    side, mebibytes, repeats = (8192, 2048, 20) if device.type == "cuda" else (1024, 256, 5)
    clock = clock_for(device)

    def median(step: Step) -> float:
        step()
        return statistics.median(clock(step) for _ in range(repeats))

    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = median(lambda: a @ b)
    source = torch.randn(mebibytes * MIB // 4, device=device)
    target = torch.empty_like(source)
    copy = median(lambda: target.copy_(source))
    return Ceilings(2 * side**3 / product, 2 * mebibytes * MIB / copy)
