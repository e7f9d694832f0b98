"""`traced_step.py RANK FOLDER`: a process of two that sums up while it computes, and then while it waits."""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from gossamer.training.traces import trace_of, traced

SIZE, HIDDEN, EXPOSED = 2, 0.15, 0.35
"""Seconds for which rank 0 has a sum under way: while it computes, and while it does nothing."""


def busy(seconds: float) -> None:
    """Operators one after another for so long."""
    numbers, end = torch.ones(512, 512), time.perf_counter() + seconds
    while time.perf_counter() < end:
        numbers @ numbers


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE)
    with traced(trace_of(folder, 3, rank), torch.device("cpu")):
        for done, passing in (("computed", lambda: busy(HIDDEN)), ("rested", lambda: time.sleep(EXPOSED))):
            if rank == 1:
                store.wait([done])  # so that the sum ends no sooner
            work = dist.all_reduce(torch.ones(1000), async_op=True)
            if rank == 0:
                passing()
                store.set(done, "")
            work.wait()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
