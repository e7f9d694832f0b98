"""Processes that train together decide together: they stop, skip, refuse and resume as one."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from gossamer.config import GPT2Config, IndexerConfig
from gossamer.training import run_folder
from gossamer.training.config import DataConfig, ParallelConfig, PhaseConfig, RunConfig, TrainConfig
from gossamer.training.distributed import joined, local
from gossamer.training.interruption import Interrupted
from gossamer.training.loop import train
from gossamer.training.metrics import read_metrics
from gossamer.training.trainer import Trainer
from tests.distributed.launch import on_gpus, run_ranks

DDP, FSDP = {"strategy": "ddp"}, {"strategy": "fsdp"}
SPREAD = {"ddp": DDP, "fsdp": FSDP, "context": {"context": 2}}
LOW = {"ddp": DDP, "fsdp": FSDP, "offloaded": {**FSDP, "offload": True}}
"""How runs in fp16 are spread."""
FOUND = {"loss", "gradient_norm", "indexer_loss", "indexer_gradient_norm", "validation_loss", "recall"}
STAGES = tuple(PhaseConfig(steps=2, stage=stage) for stage in ("dense", "warm_up", "sparse"))
INDEXER = IndexerConfig(2, 8, index_topk=4, qk_rope_head_dim=4)


class Killed(Exception):
    """Stands for the power going out: nothing is saved."""


def configured(folder: Path, name: str, parallel: dict[str, Any], *, dropout: float = 0.2, **run: Any) -> TrainConfig:
    device = "cuda" if on_gpus(2) else "cpu"
    settings = {"steps": 6, "batch_size": 4, "evaluate_sequences": 3, "checkpoint_every": 2, "device": device, **run}
    shape = GPT2Config(vocab_size=257, context_size=16, n_layer=1, n_head=2, n_embed=16, windows=(4,))
    return TrainConfig(
        model=replace(shape, dropout=dropout),
        data=DataConfig(sources=(str(folder / "text.txt"),), tokenizer="bytes", validation_share=0.1),
        run=RunConfig(folder=str(folder / name), **settings),
        parallel=ParallelConfig(**parallel),
    )


def losses(config: TrainConfig) -> list[tuple[int, float, float]]:
    rows = read_metrics(Path(config.run.folder, "metrics.jsonl"))
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows]


def on_one(rank: int, step: int, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """What acts on one process after one step."""

    def on_step(row: dict[str, Any]) -> None:
        if dist.get_rank() == rank and row["step"] == step:
            act()

    return on_step


def on_each(step: int, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """What acts on all of them."""
    return lambda row: act() if row["step"] == step else None


def kill() -> None:
    raise Killed


def goes_on_bit_for_bit(folder: Path, spread: str) -> None:
    """A signal to the second process stops both after one step; started again, both go on as if nothing had been."""
    straight, stopped = (configured(folder, f"{name} {spread}", SPREAD[spread]) for name in ("one", "other"))
    train(straight)
    for number, after in ((signal.SIGTERM, 1), (signal.SIGINT, 3)):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            train(stopped, resume="auto", on_step=on_one(1, after, lambda number=number: os.kill(os.getpid(), number)))
        except Interrupted as error:
            assert (error.signal, error.step) == (number, after + 1)
        else:
            raise AssertionError("nobody stopped")
    train(stopped, resume="auto")
    assert losses(stopped) == losses(straight)


@contextmanager
def in_float64() -> Iterator[None]:
    """Weights are made in it, and what a run computes in fp32 it computes in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def breaks_off(folder: Path) -> None:
    """Two processes train, and die after a step that no checkpoint has."""
    with in_float64(), pytest.raises(Killed):
        train(configured(folder, "broken off", DDP, dropout=0.0), on_step=on_each(5, kill))


def refusals(folder: Path) -> list[str]:
    """What is raised where the folder is taken, the batch is too small, or the processes cannot share a sequence."""
    taken = configured(folder, "one ddp", DDP)
    wrong = (taken, replace(taken, run=replace(taken.run, batch_size=1)), configured(folder, "x", {"context": 3}))
    said = []
    for config in wrong:
        try:
            train(config)
        except (ValueError, FileExistsError) as error:
            said.append(f"{type(error).__name__}: {error}")
    assert not (folder / "x").exists()
    return said


@contextmanager
def begun(config: TrainConfig) -> Iterator[Trainer]:
    """The trainer of a run that is begun if it is not."""
    with joined(config) as world:
        world.on_first(lambda: None if run_folder.holds_run(config.run.folder) else run_folder.start(config))
        yield Trainer(config, world)


def one_shard_that_overflows(folder: Path, spread: str) -> list[tuple[float, float, float | None]]:
    """(loss scale, how much weights moved, norm of the gradient) of three steps; in the second one a single number of
    one process's gradient is infinite."""
    config, found = configured(folder, "fp16", LOW[spread], precision="fp16", checkpoint_every=100), []
    with begun(config) as trainer:
        scaler, weights = trainer.state.scaler, list(trainer.state.model.parameters())
        unscale = scaler.unscale_

        def spoil(optimizer: torch.optim.Optimizer) -> None:
            if len(found) == 1 and (dist.get_rank() == 1 or spread == "ddp"):
                local(weights[0].grad).view(-1)[0] = math.inf  # type: ignore[bad-argument-type]
            unscale(optimizer)

        scaler.unscale_ = spoil
        for step in (1, 2, 3):
            before = [local(weight).clone() for weight in weights]
            norm = trainer.update(step)["gradient_norm"]
            moved = sum((local(w) - b).abs().sum().item() for w, b in zip(weights, before, strict=True))
            found.append((scaler.get_scale(), moved, norm))
    return found


def held_whole(folder: Path, spread: str) -> list[str]:
    """Which weights a process has more of than its share, after an evaluation."""
    with begun(configured(folder, "judged", LOW[spread])) as trainer:
        trainer.evaluate()
        trainer.require_finite()
        return [name for name, x in trainer.state.model.named_parameters() if not isinstance(x, DTensor)]


def through_stages(folder: Path, name: str, parallel: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run in which first all but the indexers learn, then they alone, then all."""
    config = configured(folder, name, parallel, dropout=0.0, steps=RunConfig.steps, evaluate_every=2)
    model = replace(config.model, windows=(), indexer=INDEXER)
    rows: list[dict[str, Any]] = []
    train(replace(config, model=model, phase=STAGES), on_step=rows.append)
    return rows


def compiled(folder: Path, strategies: tuple[str, ...]) -> list[list[tuple[int, float, float]]]:
    """The losses of runs that are compiled, or not: of each strategy, and of two that share their sequences."""
    found = []
    for name, parallel in (*((name, {"strategy": name}) for name in strategies), ("context", {"context": 2})):
        for compile in (False, True):
            config = configured(folder, f"{name} {compile}", parallel, dropout=0.0, compile=compile)
            train(config)
            found.append(losses(config))
    return found


def together(folder: Path) -> dict[str, Any]:
    """All of it in one launch."""
    breaks_off(folder)
    return {
        "bit for bit": [goes_on_bit_for_bit(folder, spread) for spread in SPREAD],
        "refusals": refusals(folder),
        "overflow": {spread: one_shard_that_overflows(folder, spread) for spread in LOW},
        "whole": {spread: held_whole(folder, spread) for spread in ("fsdp", "offloaded")},
        "stages": {name: through_stages(folder, f"stages {name}", parallel) for name, parallel in SPREAD.items()},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(120)))
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(together, 2, folder)


def test_a_signal_to_one_stops_all_and_all_go_on_bit_for_bit(found) -> None:
    assert [each["bit for bit"] for each in found] == [[None] * len(SPREAD)] * 2


def test_all_raise_the_same(found, folder: Path) -> None:
    said = found[0]["refusals"]
    assert said == found[1]["refusals"]
    assert said[0].startswith(f"FileExistsError: run.folder {folder / 'one ddp'} holds a run; resume it")
    assert said[1].startswith("ValueError: phase 1 has batch_size=1, too few sequences for 2 processes")
    assert said[2].startswith("ValueError: parallel.context is 3, which does not divide the number of processes, 2")


@pytest.mark.parametrize("spread", LOW)
def test_an_overflow_in_one_shard_makes_all_skip(found, spread: str) -> None:
    for each in found:
        (first, _, _), (second, moved, norm), (third, after, length) = each["overflow"][spread]
        assert (second, third) == (first / 2, first / 2)
        assert moved == 0 and norm is None and after > 0
        assert length == pytest.approx(each["overflow"]["fsdp"][2][2], rel=0.02)  # in fp16


@pytest.mark.parametrize("spread", ["fsdp", "offloaded"])
def test_nobody_keeps_what_it_gathered_for_an_evaluation(found, spread: str) -> None:
    assert [each["whole"][spread] for each in found] == [[], []]


@pytest.mark.parametrize("spread", SPREAD)
def test_stages_are_those_of_one_process(found, folder: Path, spread: str) -> None:
    alone = through_stages(folder, f"stages alone {spread}", {})
    for each in found:
        for row, expected in zip(each["stages"][spread], alone, strict=True):
            assert row.keys() == expected.keys()
            for name in FOUND & expected.keys():
                assert row[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-7), (row["step"], name)


@pytest.mark.usefixtures("found")
def test_one_process_goes_on_with_what_two_began(folder: Path) -> None:
    """Weights, gradients and moments are then in the memory of the CPU."""
    alone, resumed = (
        configured(folder, name, parallel, dropout=0.0)
        for name, parallel in (("alone", {}), ("broken off", {**FSDP, "offload": True}))
    )
    with in_float64():
        train(alone)
        train(resumed, resume=True)
    assert not dist.is_initialized()
    for got, expected in zip(losses(resumed), losses(alone), strict=True):
        assert got == pytest.approx(expected, rel=64 * torch.finfo(torch.float64).eps)


@pytest.mark.slow
def test_a_compiled_run_takes_the_same_steps(folder: Path) -> None:
    found = run_ranks(compiled, 2, folder, ("ddp", "fsdp"), seconds=600)[0]
    for plain, other in zip(found[::2], found[1::2], strict=True):
        for expected, got in zip(plain, other, strict=True):
            assert got == pytest.approx(expected, rel=1e-5)
