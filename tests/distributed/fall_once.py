"""`gossamer` as torchrun starts it, in a job whose second process is killed once, when the run has got that far."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from torch.distributed import get_node_local_rank

from gossamer.cli import main

FALLS_AT = 3  # steps that the run has done


def fall(metrics: Path, fallen: Path) -> None:
    """Die without a word, unless that has been."""
    while not metrics.exists() or metrics.read_text().count("\n") < FALLS_AT:
        time.sleep(0.002)
    if not fallen.exists():
        fallen.touch()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = Path(sys.argv[1])
    if get_node_local_rank() == 1:
        threading.Thread(target=fall, args=(run / "metrics.jsonl", run.with_suffix(".fallen")), daemon=True).start()
    sys.exit(main(["train", "--run.folder", str(run), *sys.argv[2:]]))
