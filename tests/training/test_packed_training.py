"""Packed documents in training: the loss and the gradient are those of each document alone, however a step is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.config import GPT2Config, IndexerConfig
from gossamer.nn.packing import document_lengths
from gossamer.tokenizer import ByteTokenizer
from gossamer.training import run_folder
from gossamer.training.config import DataConfig, TrainConfig
from gossamer.training.data import TokenDataset
from gossamer.training.distributed import ALONE
from gossamer.training.loop import train
from gossamer.training.metrics import read_metrics
from gossamer.training.preparation import prepare
from gossamer.training.sources import Corpus
from gossamer.training.trainer import Trainer

END = ByteTokenizer.end_of_text


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Short texts: a sequence of 16 tokens holds one, two or three of them."""
    (tmp_path / "notes").mkdir()
    for number in range(150):
        (tmp_path / "notes" / f"{number}.txt").write_text(f"{number}: {'ab' * (number % 9)}\n")
    return tmp_path / "notes"


@pytest.fixture
def packing(tiny: Callable[..., TrainConfig], notes: Path) -> Callable[..., TrainConfig]:
    """The tiny run, on packed documents and without dropout."""

    def config(**settings) -> TrainConfig:
        base = tiny(**{"model": {"dropout": 0.0}, **settings})
        data = DataConfig(sources=(str(notes),), tokenizer="bytes", validation_share=0.1, packing="documents")
        return replace(base, data=data)

    return config


def documents(tokens: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each document of a batch alone, found one token at a time."""
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        first = 0
        for place, token in enumerate(row, 1):
            if token == END or place == len(row):
                yield torch.tensor([row[first:place]]), torch.tensor([wanted[first:place]])
                first = place


def trainer_of(config: TrainConfig) -> Trainer:
    run_folder.start(config)
    made = Trainer(config, ALONE)
    made.state.model.double()
    return made


@pytest.mark.parametrize("batch", [1, 4])
def test_a_documents_last_target_is_left_out_and_no_other(notes: Path, tmp_path: Path, batch: int) -> None:
    prepare(Corpus([notes]), tmp_path / "tokens", ByteTokenizer())
    plain, packed = (
        TokenDataset(tmp_path / "tokens", "training", context_size=16, batch_size=batch, packing=kind)
        for kind in ("none", "documents")
    )
    for step in range(20):
        (tokens, targets), (same, left) = plain.batch(step), packed.batch(step)
        assert torch.equal(tokens, same)
        assert torch.equal(left, targets.where(tokens != END, -1))
        assert batch == 1 or (left == -1).any()


def test_a_step_has_the_loss_and_the_gradient_of_each_document_alone(packing) -> None:
    for pieces in (1, 2, 3, 4):
        trainer = trainer_of(packing(folder=f"{packing().run.folder}-{pieces}", gradient_accumulation=pieces))
        model, (tokens, targets) = trainer.state.model, trainer.training_data.batch(0)
        assert len(list(documents(tokens, targets))) > len(tokens) + 3
        assert len(document_lengths(tokens, END)) == len(list(documents(tokens, targets)))
        losses, correction = trainer._agreed(trainer._backward(tokens, targets), None)
        trainer._lengthen(correction)
        found = losses["loss"]
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        expected, whole = 0.0, (targets != -1).sum()
        for part, wanted in documents(tokens, targets):
            share = model(part, wanted, planned_length=16).loss * (wanted != -1).sum() / whole
            share.backward()
            expected += share.item()
        eps = torch.finfo(torch.float64).eps
        assert found == pytest.approx(expected, rel=50 * eps)
        for name, parameter in model.named_parameters():
            assert (gradients[name] - parameter.grad).abs().max() <= 200 * eps * parameter.grad.abs().max(), name


def test_evaluation_packs_too(packing) -> None:
    trainer = trainer_of(packing())
    total = count = 0
    for tokens, targets in trainer.validation_data.in_order(trainer._config.run.evaluate_sequences):
        for part, wanted in documents(tokens, targets):
            seen = int((wanted != -1).sum())
            with torch.no_grad():
                total += trainer.state.model(part, wanted, planned_length=16).loss.item() * seen
            count += seen
    assert trainer.evaluate() == pytest.approx(total / count, rel=1e-12)


def test_a_packed_run_learns_and_resumes_bit_for_bit(packing) -> None:
    folder = Path(packing().run.folder)
    train(packing(model={"dropout": 0.1}, folder=f"{folder}-straight", steps=8, checkpoint_every=4))
    straight = read_metrics(Path(f"{folder}-straight", "metrics.jsonl"))
    cut = packing(model={"dropout": 0.1}, steps=8, checkpoint_every=4)

    class Stopped(Exception):
        pass

    def stop(row) -> None:
        if row["step"] == 6:
            raise Stopped

    with pytest.raises(Stopped):
        train(cut, on_step=stop)
    train(cut, resume=True)
    resumed = read_metrics(folder / "metrics.jsonl")
    assert [row["loss"] for row in resumed] == [row["loss"] for row in straight]
    assert np.mean([row["loss"] for row in straight[-3:]]) < straight[0]["loss"]


def test_a_model_that_chooses_its_keys_is_refused() -> None:
    indexer = IndexerConfig(index_n_heads=2, index_head_dim=8, index_topk=4, qk_rope_head_dim=4)
    model = GPT2Config(vocab_size=257, context_size=16, n_layer=1, n_head=2, n_embed=16, indexer=indexer)
    with pytest.raises(ValueError, match=r"data\.packing is 'documents', but an indexer chooses among the keys"):
        TrainConfig(model=model, data=DataConfig(packing="documents"))
