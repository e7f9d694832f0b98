"""The bytes that a formula says are those that the process groups are handed in a real step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer.config import GPT2Config
from gossamer.training import run_folder
from gossamer.training.communication import learning_bytes
from gossamer.training.config import DataConfig, ParallelConfig, RunConfig, TrainConfig
from gossamer.training.distributed import joined
from gossamer.training.trainer import Trainer
from tests.distributed.launch import run_ranks

RANKS = 2
SHAPE = GPT2Config(vocab_size=257, context_size=16, n_layer=2, n_head=3, n_embed=21)  # no axis is even
PARALLEL = {
    "ddp": ParallelConfig(),
    "fsdp": ParallelConfig(strategy="fsdp"),
    "fsdp that keeps": ParallelConfig(strategy="fsdp", reshard_after_forward=False),
}
RUNS = {"fp32": {}, "bf16": {"precision": "bf16"}, "pieces": {"gradient_accumulation": 2}}


class Handed(TorchDispatchMode):
    """Bytes that this process sends in collectives by rings, of tensors with more numbers than those agreed on."""

    FEW = 32

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shares = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1}
        if func.namespace == "c10d" and func._opname in shares:
            whole = max((x for x in tree_leaves(args) if isinstance(x, Tensor)), key=Tensor.numel)
            if whole.numel() > self.FEW:
                self.sent += shares[func._opname] * whole.nbytes * (RANKS - 1) / RANKS
        return func(*args, **(kwargs or {}))


def steps(folder: str) -> dict[str, tuple[float, float]]:
    """(what a step of each kind handed over, what the formula says), of this process's share."""
    found = {}
    for kind, parallel in PARALLEL.items():
        for name, settings in RUNS.items():
            run = RunConfig(folder=f"{folder}/run", batch_size=4, device="cpu", **settings)
            config = TrainConfig(
                model=SHAPE, data=DataConfig(sources=(f"{folder}/text.txt",), tokenizer="bytes"), run=run, parallel=parallel
            )
            with joined(config) as world:
                trainer = Trainer(config, world)
                trainer.update(1)
                with Handed() as handed:  # the first step of DDP also agrees on its buckets
                    trainer.update(2)
                said = learning_bytes(
                    trainer.state.model, config, processes=world.size, pieces=run.gradient_accumulation
                )
            found[f"{kind}, {name}"] = handed.sent, said / world.size
    return found


def test_what_is_sent_is_what_the_formula_says(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(120)))
    run = RunConfig(folder=str(tmp_path / "run"), batch_size=4, device="cpu")
    run_folder.start(TrainConfig(model=SHAPE, data=DataConfig(sources=(str(tmp_path / "text.txt"),), tokenizer="bytes"), run=run))
    for rank in run_ranks(steps, RANKS, str(tmp_path)):
        assert len(rank) == len(PARALLEL) * len(RUNS)
        for case, (handed, said) in rank.items():
            assert said > 0
            assert handed == said, case
