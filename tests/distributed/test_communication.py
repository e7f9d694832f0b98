"""The bytes that a step's row says are those that the process groups were handed in it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gossamer.config import GPT2Config
from gossamer.models.gpt2 import GPT2
from gossamer.training import run_folder
from gossamer.training.communication import learning_bytes
from gossamer.training.config import DataConfig, ParallelConfig, RunConfig, TrainConfig
from gossamer.training.distributed import World, joined
from gossamer.training.operations import operations
from gossamer.training.trainer import Trainer
from tests.distributed.launch import run_ranks

RANKS = 2
SHAPE = GPT2Config(vocab_size=257, context_size=16, n_layer=2, n_head=2, n_embed=22, windows=(3, 11))
PARALLEL = {
    "ddp": ParallelConfig(),
    "fsdp": ParallelConfig(strategy="fsdp"),
    "fsdp that keeps": ParallelConfig(strategy="fsdp", reshard_after_forward=False),
    "keys": ParallelConfig(context=2),
    "heads": ParallelConfig(context=2, exchange="heads", strategy="fsdp"),
}
PIECES = (1, 2)


RINGS = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1}
FEW = 32


class Handed(TorchDispatchMode):
    """Bytes that this process sends in collectives, by rings, of tensors with more numbers than those agreed on."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._opname if func.namespace == "c10d" else ""
        if name in RINGS:
            whole = max((x for x in tree_leaves(args) if isinstance(x, Tensor)), key=Tensor.numel)
            if whole.numel() > FEW:
                self.sent += RINGS[name] * whole.nbytes * (RANKS - 1) / RANKS
        elif name == "alltoall_base_":
            self.sent += args[1].nbytes  # nobody sends itself anything
        return func(*args, **(kwargs or {}))


def config_of(folder: str, parallel: ParallelConfig, pieces: int, packing: Any = "none") -> TrainConfig:
    run = RunConfig(folder=f"{folder}/run", batch_size=4, gradient_accumulation=pieces, device="cpu")
    data = DataConfig(sources=(f"{folder}/texts",), tokenizer="bytes", packing=packing)
    return TrainConfig(model=SHAPE, data=data, run=run, parallel=parallel)


def attention_of_documents(folder: str, parallel: ParallelConfig) -> int:
    config = config_of(folder, parallel, 1, "documents")
    with joined(config) as world:
        trainer = Trainer(config, world)
        trainer.update(1)
        return trainer.packed_attention


def measured(folder: str) -> tuple[dict[str, tuple[float, float]], list[int]]:
    """What the tests compare, of this process."""
    return steps(folder), [attention_of_documents(folder, parallel) for parallel in PARALLEL.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("communication")
    (folder / "texts").mkdir()
    for n in range(120):
        (folder / "texts" / f"{n}.txt").write_text(f"{n} times {n} is {n * n}.\n"[: 4 + n % 20])
    run_folder.start(config_of(str(folder), ParallelConfig(), 1))
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[tuple[dict[str, tuple[float, float]], list[int]]]:
    return run_ranks(measured, RANKS, str(folder))


def steps(folder: str) -> dict[str, tuple[float, float]]:
    """(what this process handed over in a step of each kind, what the row says of all processes)."""
    found = {}
    for (kind, parallel), pieces in product(PARALLEL.items(), PIECES):
        config = config_of(folder, parallel, pieces)
        with joined(config) as world:
            trainer = Trainer(config, world)
            trainer.update(1)  # the first step of DDP also agrees on its buckets
            with Handed() as handed:
                row = trainer.update(2)
        found[f"{kind}, {pieces} pieces"] = handed.sent, row["communication_bytes"]
    return found


def test_what_a_row_says_is_what_all_processes_sent(ranks: list) -> None:
    first, second = (found for found, _ in ranks)
    assert len(first) == len(PARALLEL) * len(PIECES)
    for case, (handed, said) in first.items():
        assert said > 0, case
        assert second[case][1] == said, case
        assert handed + second[case][0] == said, case


def test_attention_within_documents_is_counted_once_however_it_is_shared(ranks: list, folder: Path) -> None:
    alone = attention_of_documents(str(folder), ParallelConfig())
    assert 0 < alone < 4 * operations(SHAPE, length=16).attention
    for _, counted in ranks:
        assert counted == [alone] * len(PARALLEL)


def test_gpus_gather_layers_in_the_precision_of_the_run_and_sum_gradients_in_float32() -> None:
    model, world = GPT2(SHAPE), World(torch.device("cuda"), size=2)
    config = config_of("", ParallelConfig(strategy="fsdp"), 1)
    layers = sum(2 * -(-each.shape[0] // 2) * (each.numel() // each.shape[0]) for each in model.h.parameters())
    full, half = (
        learning_bytes(model, replace(config, run=replace(config.run, precision=precision)), world, pieces=1)
        for precision in ("fp32", "bf16")
    )
    assert full - half == 2 * 2 * layers  # two gathers, two bytes less


def test_a_process_alone_sends_nothing() -> None:
    for parallel in (ParallelConfig(), ParallelConfig(strategy="fsdp")):
        assert learning_bytes(GPT2(SHAPE), config_of("", parallel, 1), World(torch.device("cpu")), pieces=3) == 0
