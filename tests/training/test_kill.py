"""kill -9 at random moments: the run always resumes from its last complete checkpoint, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gossamer.training.checkpoint_folders import steps
from gossamer.training.config import TrainConfig
from gossamer.training.manifest import damage
from gossamer.training.metrics import read_metrics

KILLS = 5
STEP_SECONDS = 0.02  # about one step and its checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen]:
    script = Path(__file__).with_name("train_and_die.py")
    with open(tmp_path / "errors.txt", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    with process:
        yield process
        process.stdin.close()


def child_of(worker: subprocess.Popen, config: TrainConfig, path: Path) -> int:
    config.to_toml(path)
    worker.stdin.write(f"{path}\n")
    worker.stdin.flush()
    return int(worker.stdout.readline())


def status_in(worker: subprocess.Popen) -> int:
    return int(worker.stdout.readline())


def newest(run: Path) -> int:
    return max(steps(run), default=0)


def let_live(run: Path, *, steps: int, seconds: float) -> None:
    """Wait until the run has that many more checkpoints, and a moment longer."""
    goal, patience = newest(run) + steps, time.monotonic() + 60
    while newest(run) < goal and time.monotonic() < patience:
        time.sleep(0.001)
    time.sleep(seconds)


def test_a_killed_run_always_goes_on(
    tiny: Callable[..., TrainConfig], tmp_path: Path, worker: subprocess.Popen
) -> None:
    settings = {"steps": 60, "evaluate_every": 20}
    straight = tiny(folder=str(tmp_path / "straight"), **settings)
    child_of(worker, straight, tmp_path / "straight.toml")
    assert status_in(worker) == 0, (tmp_path / "errors.txt").read_text()

    config, moments = tiny(**settings, checkpoint_every=1), random.Random(0)
    for _ in range(KILLS):
        child = child_of(worker, config, tmp_path / "run.toml")
        let_live(tmp_path / "run", steps=moments.randrange(4), seconds=moments.uniform(0, STEP_SECONDS))
        os.kill(child, signal.SIGKILL)
        assert status_in(worker) == signal.SIGKILL, (tmp_path / "errors.txt").read_text()
        complete = [damage(tmp_path / "run" / "checkpoints" / f"step-{step:08d}") for step in steps(tmp_path / "run")]
        assert not any(complete)
    child_of(worker, config, tmp_path / "run.toml")
    assert status_in(worker) == 0, (tmp_path / "errors.txt").read_text()

    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "run"))
    assert [(row["step"], row["loss"]) for row in other] == [(row["step"], row["loss"]) for row in one]
    assert one[-1]["validation_loss"] == other[-1]["validation_loss"]
    assert not [path for path in tmp_path.rglob("*.partial")], "a killed process left something behind"
