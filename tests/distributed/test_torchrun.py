"""torchrun starts a run, one process falls, torchrun starts all again, and the run is the one that nothing befell."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer.training.config import TrainConfig
from gossamer.training.loop import train
from gossamer.training.metrics import read_metrics
from tests.distributed.launch import run_ranks

FLAGS = {
    "--model.vocab-size": 257,
    "--model.context-size": 16,
    "--model.n-layer": 1,
    "--model.n-head": 3,
    "--model.n-embed": 24,
    "--model.dropout": 0.1,
    "--data.tokenizer": "bytes",
    "--run.steps": 40,
    "--run.batch-size": 4,
    "--run.evaluate-every": 10,
    "--run.checkpoint-every": 2,
    "--run.device": "cpu",
    "--parallel.strategy": "fsdp",
}


def straight(folder: Path) -> None:
    """The same run, in processes that nothing befalls."""
    config = TrainConfig.from_toml(folder / "run" / "config.toml")
    train(replace(config, run=replace(config.run, folder=str(folder / "straight"))))


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_that_falls_is_started_again_and_loses_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(120)))
    flags = [str(part) for pair in FLAGS.items() for part in pair]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    script = Path(__file__).with_name("fall_once.py")
    command = [sys.executable, *launcher, script, tmp_path / "run", "--auto-resume", "--data.sources", text, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.fallen").exists()
    assert done.stdout.count("40 steps, validation loss") == 1  # the first process speaks for all
    run_ranks(straight, 2, tmp_path)
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "run"))
    for name in ("step", "loss", "gradient_norm", "validation_loss"):
        assert [row.get(name) for row in other] == [row.get(name) for row in one]
