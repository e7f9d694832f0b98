"""The timeline of a step: what ran when, for a browser to show, and what its communication cost."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

log = logging.getLogger(__name__)

FOLDER = "traces"
STEP = "gossamer.step"
COMPUTED_BY = ("aten::", "gossamer::")  # operators, on a device without kernels of its own
IDLE = "spin_kernel"  # a GPU's wait for NCCL to begin (`parallel.exchange.HEAD_START`) computes nothing
MICRO = 1e-6

Intervals = list[tuple[float, float]]


class Communication(NamedTuple):
    """Seconds in which this process exchanged something, and those of them in which it computed nothing."""

    seconds: float
    exposed_seconds: float


@contextmanager
def traced(path: Path, device: torch.device) -> Iterator[None]:
    """Write what runs within the block to `path`, as Chrome's and Perfetto's timelines read it.

    All processes of the run enter together: none waits within the block for another that is not there yet. A file
    that cannot be written is a warning, and no reason to end a run.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities, acc_events=True) as recorded:  # one cycle: else a warning that others are lost
        if dist.is_initialized():
            dist.barrier()
        with record_function(STEP):
            yield
            if on_gpu:
                torch.cuda.synchronize(device)
    try:
        path.parent.mkdir(exist_ok=True)
        recorded.export_chrome_trace(str(path))
    except OSError as error:
        log.warning("the trace could not be written to %s: %s", path, error)
        with suppress(OSError):
            path.unlink()


def trace_of(folder: Path, step: int, rank: int) -> Path:
    """Where the timeline of a step is, as seen by one process."""
    return folder / FOLDER / f"step-{step:08d}.rank-{rank}.json.gz"


def communication_in(trace: Path) -> Communication:
    """What the step in a trace spent on communication, and what of that no computation hid.

    On a GPU those are NCCL's kernels and all others; without one, gloo's work and the operators outside it.

    Raises:
        FileNotFoundError: There is no such trace.
    """
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    (whole,) = (_interval(event) for event in events if event["name"] == STEP and event["cat"] == "user_annotation")
    kernels = [event for event in events if event["cat"] == "kernel"]
    exchanges = [event for event in events if _exchanges(event)]
    exchanging = {event["tid"] for event in exchanges}
    operators = [e for e in events if e["name"].startswith(COMPUTED_BY) and e["tid"] not in exchanging]
    computed = [e for e in kernels if not _exchanges(e) and IDLE not in e["name"]] if kernels else operators
    spent = union(_within(whole, map(_interval, exchanges)))
    hidden = union(_within(whole, map(_interval, computed)))
    return Communication(MICRO * length(spent), MICRO * length(without(spent, hidden)))


def union(intervals: Iterable[tuple[float, float]]) -> Intervals:
    """The same stretches of time, in order, with none that overlap or touch.

    >>> union([(5, 7), (0, 2), (1, 3), (3, 4)])
    [(0, 4), (5, 7)]
    """
    joined: Intervals = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def without(intervals: Intervals, others: Intervals) -> Intervals:
    """What of `intervals` is in none of `others`; each list is a `union`.

    >>> without([(0, 10), (20, 30)], [(2, 3), (5, 22), (40, 50)])
    [(0, 2), (3, 5), (22, 30)]
    """
    left: Intervals = []
    place = 0
    for start, end in intervals:
        while place < len(others) and others[place][1] <= start:
            place += 1
        while place < len(others) and others[place][0] < end:
            if others[place][0] > start:
                left.append((start, others[place][0]))
            start = max(start, others[place][1])
            if start >= end:  # it may reach into the next one too
                break
            place += 1
        if start < end:
            left.append((start, end))
    return left


def length(intervals: Intervals) -> float:
    """How long they are together; none overlaps another."""
    return sum(end - start for start, end in intervals)


def _exchanges(event: dict[str, Any]) -> bool:
    name = event["name"]
    return name.startswith("gloo:") or (event["cat"] == "kernel" and name.startswith("nccl"))


def _interval(event: dict[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _within(whole: tuple[float, float], intervals: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    for start, end in intervals:
        if start < whole[1] and end > whole[0]:
            yield max(start, whole[0]), min(end, whole[1])
