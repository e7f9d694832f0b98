"""kill -9 at random moments, again and again: `python -m tests.training.kill_many --kills 200 [--ranks 2]`.

Small runs are killed, most often while they save, and resumed, until they end. After each kill every checkpoint must be
whole and the newest one no older than before. At the end every loss, and every byte of the last checkpoint (weights,
optimizer, random states), must be what an uninterrupted run has; and one more resume must change nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.training.checkpoint_folders import FOLDER, folder_of, steps
from gossamer.training.config import DataConfig, ParallelConfig, RunConfig, ScheduleConfig, TrainConfig
from gossamer.training.config.parallel import Strategy
from gossamer.training.manifest import MANIFEST, damage
from gossamer.training.metrics import read_metrics

STEPS = 40
SAVE = 0.03  # seconds, about what a checkpoint takes
LIFE = 1.0  # seconds, about what a run takes that nobody kills
MOMENTS = {"any": 1, "start": 1, "save": 4, "rename": 2}
"""How often a kill comes at any moment, in the first moments, while a checkpoint is written, and when one appears."""


class Worker:
    """The process that trains in children of its own."""

    def __init__(self, errors: Path):
        self.errors = errors
        script = Path(__file__).with_name("train_and_die.py")
        with open(errors, "w") as file:
            self._process = subprocess.Popen(
                [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )

    def start(self, config: TrainConfig, ranks: int, path: Path) -> list[int]:
        """Process ids of the children, of which the first leads their group."""
        config.to_toml(path)
        self._process.stdin.write(f"{ranks} {path}\n")
        self._process.stdin.flush()
        return self._line()

    def has_ended(self) -> bool:
        """Whether all children have."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def statuses(self) -> list[int]:
        """How the children ended, once they have."""
        return self._line()

    def close(self) -> None:
        """End the worker, which waits for no child."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _line(self) -> list[int]:
        line = self._process.stdout.readline()
        assert line, self.errors.read_text()
        return [int(number) for number in line.split()]


@contextmanager
def working(folder: Path) -> Iterator[Worker]:
    """A worker for the length of the block."""
    worker = Worker(folder / "errors.txt")
    try:
        yield worker
    finally:
        worker.close()


def tiny(folder: Path, text: Path, seed: int, strategy: Strategy = "ddp") -> TrainConfig:
    """A run of milliseconds a step; dropout is on, so that random states matter."""
    heads = SparseAttentionConfig(local_heads=2, global_heads=1, window_size=4, min_window_size=1)
    shape = GPT2Config(
        vocab_size=257,
        context_size=16,
        n_layer=1,
        n_head=3,
        n_embed=24,
        dropout=0.1,
        use_sparse_attention=True,
        sparse_config=heads,
    )
    run = {"steps": STEPS, "batch_size": 4, "evaluate_every": 7, "evaluate_sequences": 4, "checkpoint_every": 1}
    return TrainConfig(
        model=shape,
        data=DataConfig(sources=(str(text),), tokenizer="bytes", validation_share=0.1),
        schedule=ScheduleConfig(warmup_steps=2),
        run=RunConfig(folder=str(folder), device="cpu", seed=seed, **run),
        parallel=ParallelConfig(strategy=strategy),
    )


def kill_many(
    folder: Path, *, kills: int, ranks: int = 1, strategy: Strategy = "ddp", seed: int = 0, say: Callable = print
) -> Counter:
    """Kill runs so many times, and count what was met.

    Raises:
        AssertionError: A checkpoint was not whole, or a run did not end as it would have without a kill.
    """
    tally, moments = Counter(), random.Random(seed)
    text = folder / "text.txt"
    text.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(120)))
    with working(folder) as worker:
        while tally["kills"] < kills:
            number = tally["runs"]
            straight, run = (tiny(folder / f"{name}{number}", text, number, strategy) for name in ("straight", "run"))
            _finish(worker, straight, ranks)
            while tally["kills"] < kills and _killed(worker, run, ranks, moments, tally):
                if tally["kills"] % 20 == 0:
                    say(dict(tally))
            for _ in range(2):  # the second time there is nothing left to do, and nothing changes
                _finish(worker, run, ranks)
                _require_same(straight, run)
            tally["runs"] += 1
    return tally


def _killed(worker: Worker, config: TrainConfig, ranks: int, moments: random.Random, tally: Counter) -> bool:
    """Start or resume the run and kill it; False if it ended first."""
    run = Path(config.run.folder)
    before = max(steps(run), default=0)
    (kind,) = moments.choices(list(MOMENTS), list(MOMENTS.values()))
    children = worker.start(config, ranks, run.with_suffix(".toml"))
    _wait(worker, run, kind, moments, before)
    if ranks > 1 and moments.random() < 0.3:  # one goes first, and the others find out
        with suppress(ProcessLookupError):
            os.kill(moments.choice(children), signal.SIGKILL)
        time.sleep(moments.uniform(0, 2 * SAVE))
        tally["one process first"] += 1
    with suppress(ProcessLookupError):
        os.killpg(children[0], signal.SIGKILL)
    statuses = worker.statuses()
    if statuses == [0] * ranks:
        return False
    assert signal.SIGKILL in statuses, worker.errors.read_text()
    for step in steps(run):
        assert damage(folder_of(run, step)) is None, f"step {step} after {tally}"
    newest = max(steps(run), default=0)
    assert newest >= before, f"the checkpoint of step {before} is gone: {tally}"
    tally["kills"] += 1
    tally["in a save"] += bool(list(run.glob(f"{FOLDER}/.*.partial")))
    tally["without a new checkpoint"] += newest == before
    return True


def _wait(worker: Worker, run: Path, kind: str, moments: random.Random, before: int) -> None:
    """Return at the moment to kill at."""
    if kind in ("any", "start"):
        time.sleep(moments.uniform(0, LIFE if kind == "any" else LIFE / 4))
        return
    goal = before + moments.randint(1, 6)
    while not worker.has_ended():
        found = max(steps(run), default=0)
        if found >= goal or (kind == "save" and found >= goal - 1 and any(run.glob(f"{FOLDER}/.*.partial"))):
            break
        time.sleep(0.0005)
    time.sleep(moments.uniform(0, SAVE if kind == "save" else SAVE / 4))


def _finish(worker: Worker, config: TrainConfig, ranks: int) -> None:
    worker.start(config, ranks, Path(config.run.folder).with_suffix(".toml"))
    assert worker.statuses() == [0] * ranks, worker.errors.read_text()


def _require_same(straight: TrainConfig, run: TrainConfig) -> None:
    """The same losses, and the same bytes in the last checkpoint: its manifest has the SHA-256 of each file."""
    folders = [Path(config.run.folder) for config in (straight, run)]
    one, other = (
        [(row["step"], row["loss"], row.get("validation_loss"), row["gradient_norm"]) for row in read_metrics(rows)]
        for rows in (folder / "metrics.jsonl" for folder in folders)
    )
    assert other == one, f"{folders[1]} has other losses than {folders[0]}"
    one, other = ((folder_of(folder, STEPS) / MANIFEST).read_text() for folder in folders)
    assert other == one, f"{folders[1]} ends with another state than {folders[0]}"
    assert not list(folders[1].rglob("*.partial")), "a killed process left something behind"


def main() -> None:
    """Run with what the command line says, and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        tally = kill_many(Path(folder), kills=given.kills, ranks=given.ranks, strategy=given.strategy, seed=given.seed)
    print(json.dumps({**vars(given), **tally, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
