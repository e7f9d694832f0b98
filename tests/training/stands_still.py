"""`stands_still.py RANK CONFIG`: one of two processes that train together, of which rank 1 falls asleep in a step."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gossamer.training.config import TrainConfig
from gossamer.training.loop import train
from gossamer.training.trainer import Trainer

SIZE, SLEEPS_IN = 2, 3


def falls_asleep() -> None:
    print(time.time(), flush=True)
    time.sleep(600)


def main(rank: int, config: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(config.with_name("store")), SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE)
    forward = Trainer._outcome

    def drowsy(trainer: Trainer, *given: Any, **settings: Any) -> Any:
        if (rank, trainer.state.step) == (1, SLEEPS_IN - 1):
            falls_asleep()
        return forward(trainer, *given, **settings)

    Trainer._outcome = drowsy
    train(TrainConfig.from_toml(config))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
