"""`stands_still.py RANK FOLDER`: a process of a group that goes through steps, in one of which rank 1 falls asleep."""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from gossamer.training.watchdog import watched

SIZE, TIMEOUT, SLEEPS_IN = 2, 2.0, 3


def falls_asleep() -> None:
    time.sleep(600)


def main(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE)
    with watched(TIMEOUT, folder, rank=rank, size=SIZE, store=store) as watchdog:
        for step in range(1, SLEEPS_IN + 1):
            watchdog.beat("reads data", step=step)
            if (rank, step) == (1, SLEEPS_IN):
                print(time.time(), flush=True)
                falls_asleep()
            watchdog.beat("sums gradients", step=step)
            dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
