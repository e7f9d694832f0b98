"""How the processes of one start find each other, where an earlier start has left its traces."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

POLL = 0.01  # seconds


def launched_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """(a store in which nothing is old, rank, number of processes) of a process that torchrun started.

    When torchrun starts processes again, they get the store of the ones before, in which some would find the addresses
    of processes that are gone (pytorch#135712, pytorch#167288). So the first process draws a name for this start, and
    tells it to each of the others that asks under a name of its own.

    Raises:
        RuntimeError: Some of them did not come in time.
    """
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    end = time.monotonic() + timeout.total_seconds()
    name = _told(store, size, end) if rank == 0 else _asked(store, rank, end)
    return dist.PrefixStore(name, store), rank, size


def _told(store: dist.Store, size: int, end: float) -> str:
    """The name of this start, which every other process has heard."""
    name, missing = f"start {uuid.uuid4().hex}", set(range(1, size))
    while missing:
        for rank in sorted(missing):
            if store.check([_ask(rank)]):  # by one of this start, or one that is gone: both are answered
                store.set(store.get(_ask(rank)).decode(), name)
            if store.check([_heard(name, rank)]):
                missing.discard(rank)
        _wait(end, f"processes {sorted(missing)} did not come")
    return name


def _asked(store: dist.Store, rank: int, end: float) -> str:
    """The name of this start, by the first process."""
    own = f"answer {uuid.uuid4().hex}"
    while not store.check([own]):
        store.set(_ask(rank), own)  # again and again, as one of the start before may still be asking
        _wait(end, "the first process did not come")
    name = store.get(own).decode()
    store.set(_heard(name, rank), "heard")
    return name


def _wait(end: float, otherwise: str) -> None:
    if time.monotonic() > end:
        raise RuntimeError(f"{otherwise} within parallel.timeout_seconds; see what became of them, and start again")
    time.sleep(POLL)


def _ask(rank: int) -> str:
    return f"ask/{rank}"


def _heard(name: str, rank: int) -> str:
    return f"{name}/heard/{rank}"
