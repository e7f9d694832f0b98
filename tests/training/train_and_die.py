"""A process that trains in children of its own, so that a killed one costs no import of torch.

Each line of the standard input is a number of processes and the TOML file of a run, which so many children start
together, or resume if it was started. Printed are the children's process ids at once, which make one process group, and
their exit statuses when all have ended.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from gossamer.training.config import TrainConfig
from gossamer.training.loop import train

LIFETIME = 300.0
"""Seconds after which a child gives up, whatever has become of the process that started it."""


def live(config: TrainConfig, rank: int, ranks: int, meeting: Path) -> None:
    """Train as one of `ranks` processes."""
    signal.alarm(int(LIFETIME))
    if ranks > 1:
        store = dist.FileStore(str(meeting), ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    train(config, resume="auto")


def children(config: TrainConfig, ranks: int, meeting: Path) -> list[int]:
    """Start the processes; the first one leads their group."""
    started: list[int] = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setpgid(0, started[0] if started else 0)
                live(config, rank, ranks, meeting)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        started.append(child)
        os.setpgid(child, started[0])  # by both, as it is not known who comes first
    return started


def main() -> None:
    """Answer the lines of the standard input."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        ranks, path = line.strip().split(" ", 1)
        with TemporaryDirectory() as folder:
            started = children(TrainConfig.from_toml(path), int(ranks), Path(folder, "meeting"))
            print(*started, flush=True)
            print(*[os.waitpid(child, 0)[1] for child in started], flush=True)


main()
