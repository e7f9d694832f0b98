"""How long one step takes: by the wall clock on a CPU, by the device's own events on a GPU."""

import time
from collections.abc import Callable
from functools import partial

import torch

from .case import Step

L2_FLUSH_BYTES = 256 * 2**20

Clock = Callable[[Step], float]


def clock_for(device: torch.device) -> Clock:
    """A function that runs a step once and returns its seconds."""
    if device.type != "cuda":
        return host_seconds
    return partial(cuda_seconds, flush=torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device=device))


def host_seconds(step: Step) -> float:
    """Wall time of one step that is finished when it returns."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def cuda_seconds(step: Step, flush: torch.Tensor) -> float:
    """Time of one step on the GPU, from a cold L2 cache.

    Overwriting `flush` first empties the cache, and keeps the GPU busy while the CPU queues the step.
    """
    with torch.cuda.device(flush.device):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        start.record()
        step()
        stop.record()
        stop.synchronize()
    return 1e-3 * start.elapsed_time(stop)
