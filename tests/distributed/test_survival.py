"""What goes wrong in one process is left out in all, and each writes what it saw of a step that is traced."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gossamer.config import GPT2Config
from gossamer.models.gpt2 import GPT2
from gossamer.training.config import DataConfig, GuardConfig, ParallelConfig, RunConfig, TrainConfig
from gossamer.training.loop import train
from gossamer.training.metrics import read_metrics
from gossamer.training.traces import communication_in, trace_of
from tests.distributed.launch import run_ranks

RANKS, BAD, TRACED = 2, 7, 3
SHAPE = GPT2Config(vocab_size=257, context_size=16, n_layer=2, n_head=2, n_embed=16)
OWN = ("seconds", "tokens_per_second", "peak_memory_bytes", "mfu", "communication_seconds", "exposed_seconds")


def config_of(folder: str, name: str, parallel: ParallelConfig) -> TrainConfig:
    return TrainConfig(
        model=SHAPE,
        data=DataConfig(sources=(f"{folder}/text.txt",), tokenizer="bytes"),
        run=RunConfig(folder=f"{folder}/{name}", batch_size=4, steps=9, device="cpu", profile_steps=(TRACED,)),
        parallel=parallel,
        guard=GuardConfig(spike_factor=5.0, spike_window=3),
    )


class Spoiled:
    """In rank 1 alone, what step `BAD` found is multiplied."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str):
        self.step, clip, forward = 1, torch.nn.utils.clip_grad_norm_, GPT2.forward
        if dist.get_rank() == 1 and name == "a length":
            patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: clip(*given) * self.times(1e3))
        if dist.get_rank() == 1 and name == "a loss":
            patch.setattr(GPT2, "forward", lambda *given, **more: self.louder(forward(*given, **more)))

    def times(self, factor: float) -> float:
        return factor if self.step == BAD else 1.0

    def louder(self, found: Any) -> Any:
        return found._replace(loss=found.loss * self.times(math.nan))


def runs(folder: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each run as this process saw them, without what is its own."""
    found = {}
    for strategy in ("ddp", "fsdp"):
        for name in ("a loss", "a length"):
            rows: list[dict[str, Any]] = []
            with pytest.MonkeyPatch.context() as patch:
                spoiled = Spoiled(patch, name)

                def note(row: dict[str, Any], rows: list = rows, spoiled: Spoiled = spoiled) -> None:
                    rows.append({key: value for key, value in row.items() if key not in OWN})
                    spoiled.step = row["step"] + 1

                train(config_of(folder, f"{strategy}, {name}", ParallelConfig(strategy=strategy)), on_step=note)
            found[f"{strategy}, {name}"] = rows
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survival")
    (folder / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(120)))
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, list[dict[str, Any]]]]:
    return run_ranks(runs, RANKS, str(folder))


def test_a_fault_of_one_process_leaves_the_step_out_in_all(seen: list) -> None:
    first, second = seen
    for name, rows in first.items():
        assert rows == second[name], name
        left_out = {row["step"]: row["skipped"] for row in rows if "skipped" in row}
        assert list(left_out) == [BAD], name
        assert left_out[BAD].startswith("loss is nan" if "loss" in name else "gradient_norm is "), name


def test_each_process_leaves_its_timeline_and_the_row_is_the_first_ones(seen: list, folder: Path) -> None:
    for name in seen[0]:
        (row,) = (row for row in read_metrics(folder / name / "metrics.jsonl") if "exposed_seconds" in row)
        spent = [communication_in(trace_of(folder / name, TRACED, rank)) for rank in range(RANKS)]
        assert row["step"] == TRACED
        assert (row["communication_seconds"], row["exposed_seconds"]) == spent[0]
        for seconds, exposed in spent:
            assert seconds > 0 and 0 <= exposed <= seconds
        assert row["communication_seconds"] < row["seconds"]
