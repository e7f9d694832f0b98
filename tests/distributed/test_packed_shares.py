"""Packed documents over several processes: one order of the text, and the numbers of one process.

A document's tokens may lie in two processes, and a row's documents are others in each; all the same, losses and
gradients are those of one process, which tests/training/test_packed_training.py compares to each document alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.models.gpt2 import GPT2
from gossamer.nn.packing import document_lengths
from gossamer.tokenizer import ByteTokenizer
from gossamer.training import Corpus, prepare, run_folder
from gossamer.training.config import DataConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainConfig
from gossamer.training.data import TokenDataset
from gossamer.training.distributed import World, joined
from gossamer.training.share import Share
from gossamer.training.trainer import Trainer
from tests.distributed.launch import run_ranks

CONTEXT, STEPS = 30, 2
HEADS = SparseAttentionConfig(local_heads=2, global_heads=2, window_size=6, min_window_size=1)
SHAPE = GPT2Config(
    vocab_size=257,
    context_size=CONTEXT,
    n_layer=2,
    n_head=4,
    n_embed=24,
    use_sparse_attention=True,
    sparse_config=HEADS,
)
WAYS = (
    ParallelConfig(strategy="ddp"),
    ParallelConfig(strategy="fsdp"),
    ParallelConfig(strategy="ddp", context=2),
    ParallelConfig(strategy="fsdp", context=2),
    ParallelConfig(strategy="ddp", context=2, exchange="heads"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 5 to 50 bytes."""
    made = tmp_path_factory.mktemp("packed")
    (made / "notes").mkdir()
    for number in range(150):
        (made / "notes" / f"{number}.txt").write_text(f"{number}: {'word ' * (number % 10)}\n")
    return made


def test_the_order_of_the_text_is_one_for_any_number_of_processes(folder: Path) -> None:
    prepare(Corpus([folder / "notes"]), folder / "tokens", ByteTokenizer())
    dataset = TokenDataset(folder / "tokens", "training", context_size=CONTEXT, batch_size=7, packing="documents")
    end = dataset.end_of_document
    for step in (0, 5, 1000):  # of several epochs
        tokens, targets = dataset.batch(step)
        for processes in range(1, 8):
            shares = [dataset.batch(step, Share(place, processes)) for place in range(processes)]
            assert torch.equal(torch.cat([share for share, _ in shares]), tokens)
            assert torch.equal(torch.cat([share for _, share in shares]), targets)
            lengths = sum((document_lengths(share, end) for share, _ in shares), ())
            assert lengths == document_lengths(tokens, end)


def configured(folder: Path, parallel: ParallelConfig, pieces: int) -> TrainConfig:
    return TrainConfig(
        model=SHAPE,
        data=DataConfig(
            sources=(str(folder / "notes"),), tokenizer="bytes", validation_share=0.1, packing="documents"
        ),
        optimizer=OptimizerConfig(gradient_clip=1e9),
        run=RunConfig(
            folder=str(folder / "run"), start_from=str(folder / "seed"), steps=STEPS, batch_size=5,
            evaluate_sequences=3, device="cpu", gradient_accumulation=pieces,
        ),
        parallel=parallel,
    )  # fmt: skip


def measured(folder: Path, ways: tuple[ParallelConfig, ...]) -> list[dict[str, Any]]:
    """What this process measures by each way, in float64; the first step's gradients are whole in each."""
    torch.set_default_dtype(torch.float64)
    found = []
    for number, way in enumerate(ways):
        with joined(configured(folder, way, pieces=1 + number % 2)) as world:
            found.append(steps_of(Trainer(configured(folder, way, pieces=1 + number % 2), world)))
    return found


def steps_of(trainer: Trainer) -> dict[str, Any]:
    trainer.begin()
    gradients: list[dict[str, Any]] = []

    def look(*_: Any) -> None:
        named = {name: parameter.grad for name, parameter in trainer.state.model.named_parameters()}
        gradients.append({n: g.full_tensor() if isinstance(g, DTensor) else g.clone() for n, g in named.items()})

    trainer.state.optimizer.register_step_pre_hook(look)
    rows = [trainer.update(step) for step in range(1, STEPS + 1)]
    whole = {name: gradient.numpy() for name, gradient in gradients[0].items()}
    return {"rows": rows, "gradients": whole, "validation": trainer.evaluate()}


def test_losses_and_gradients_are_those_of_one_process(folder: Path) -> None:
    torch.manual_seed(1)
    GPT2(SHAPE).save(folder / "seed")
    run_folder.start(configured(folder, ParallelConfig(), 1))
    torch.set_default_dtype(torch.float64)
    try:
        alone = steps_of(Trainer(configured(folder, ParallelConfig(), 1), World(torch.device("cpu"))))
    finally:
        torch.set_default_dtype(torch.float32)
    rounding = 1000 * torch.finfo(torch.float64).eps
    for rank, ways in enumerate(run_ranks(measured, 2, folder, WAYS)):
        for way, found in zip(WAYS, ways, strict=True):
            name = f"rank {rank} of {way}"
            for row, one in zip(found["rows"], alone["rows"], strict=True):
                assert row["loss"] == pytest.approx(one["loss"], rel=rounding), name
                assert row["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=rounding), name
            assert found["validation"] == pytest.approx(alone["validation"], rel=rounding), name
            for parameter, gradient in alone["gradients"].items():
                apart = abs(found["gradients"][parameter] - gradient).max()
                assert apart <= rounding * alone["rows"][0]["gradient_norm"], f"{name}: {parameter}"
