"""A process that trains in children of its own, so that a killed one costs no import of torch.

Each line of the standard input is the TOML file of a run, which a child starts, or resumes if it was started;
printed are the child's process id at once and its exit status at its end.
"""

import os
import sys
from pathlib import Path

import torch

from gossamer.training.config import TrainConfig
from gossamer.training.loop import train

torch.set_num_threads(1)
for line in sys.stdin:
    config = TrainConfig.from_toml(line.strip())
    child = os.fork()
    if child == 0:
        train(config, resume=Path(config.run.folder, "config.toml").is_file())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
