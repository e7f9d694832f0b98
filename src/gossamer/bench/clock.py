"""How long one step takes: by the wall clock on a CPU, by the device's own events on a GPU."""

import time
from functools import partial

import torch

from .case import Clock, Step

L2_FLUSH_BYTES = 256 * 2**20
LAUNCHES = 10
FLUSHES = 40
"""Nearly three milliseconds of writing on an H200, for the host to queue a step in."""


def clock_for(device: torch.device) -> Clock:
    """A function that runs a step once and returns the seconds that the device takes for it."""
    if device.type != "cuda":
        return host_seconds
    return partial(cuda_seconds, flush=torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device=device))


def launch_clock_for(device: torch.device) -> Clock:
    """A function that runs a step once and returns the seconds until the host is free again."""
    return partial(launch_seconds, device=device) if device.type == "cuda" else host_seconds


def replayed(step: Step, device: torch.device) -> Step:
    """The step as the replay of a CUDA graph, which returns the same tensors each time; on a CPU the step itself."""
    if device.type != "cuda":
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        step()  # tables and kernels are made outside of the graph
        with torch.cuda.graph(graph):
            made = step()

    def replay() -> object:
        graph.replay()
        return made

    return replay


def host_seconds(step: Step) -> float:
    """Wall time of one step that is finished when it returns."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def wall_seconds(step: Step, device: torch.device) -> float:
    """Wall time from an idle machine to an idle machine."""
    if device.type != "cuda":
        return host_seconds(step)
    torch.cuda.synchronize(device)
    return host_seconds(lambda: (step(), torch.cuda.synchronize(device)))


def cuda_seconds(step: Step, flush: torch.Tensor) -> float:
    """Time of one step on the GPU, from a cold L2 cache.

    Overwriting `flush` first empties the cache, and keeps the GPU busy while the CPU queues the step: its launches
    are not part of the time.
    """
    with torch.cuda.device(flush.device):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(FLUSHES):
            flush.zero_()
        start.record()
        step()
        stop.record()
        stop.synchronize()
    return 1e-3 * start.elapsed_time(stop)


def launch_seconds(step: Step, device: torch.device) -> float:
    """Time in which the host launches one of several steps in a row on an idle GPU, whose work it does not wait for."""
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(LAUNCHES):
        step()
    return (time.perf_counter() - start) / LAUNCHES
