"""Training to choose: the stages change what they may change and nothing else, and what is logged is what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.config import GPT2Config, IndexerConfig
from gossamer.models.gpt2 import GPT2
from gossamer.nn.indexing import chosen
from gossamer.training import checkpoint_folders
from gossamer.training.config import PhaseConfig, RunConfig, Stage, TrainConfig
from gossamer.training.distributed import ALONE
from gossamer.training.loop import train
from gossamer.training.metrics import read_metrics
from gossamer.training.recall import recall
from gossamer.training.run_folder import start
from gossamer.training.stages import enter_stage, indexer_parameters, indexers_of
from gossamer.training.trainer import Trainer

Staged = Callable[..., TrainConfig]
INDEXER = IndexerConfig(index_n_heads=2, index_head_dim=8, index_topk=4, qk_rope_head_dim=4)
STAGES: tuple[Stage, ...] = ("dense", "warm_up", "sparse")


@pytest.fixture
def staged(tiny: Callable[..., TrainConfig]) -> Staged:
    """`staged("warm_up", "sparse")` is a run of three steps in each stage, with 4 of 16 keys to a query."""

    def config(*stages: Stage, steps: int = 3, model: dict[str, Any] | None = None, **run: Any) -> TrainConfig:
        settings = {"dropout": 0.0, "n_layer": 2, "indexer": INDEXER} | (model or {})
        plain = tiny(sparse=False, model=settings, **run)
        phases = tuple(PhaseConfig(steps, stage=stage, learning_rate=3e-3) for stage in stages)
        return replace(plain, run=replace(plain.run, steps=RunConfig.steps), phase=phases)

    return config


def trainer_of(config: TrainConfig) -> Trainer:
    start(config)
    made = Trainer(config, ALONE)
    made.begin()
    return made


def read_metrics_of(config: TrainConfig) -> list[dict[str, Any]]:
    train(config)
    return read_metrics(Path(config.run.folder, "metrics.jsonl"))


def is_indexer(name: str) -> bool:
    return ".indexer." in name


def weights(model: GPT2) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[bool]:
    """Whether weights of indexers (True) and others (False) have changed."""
    return {is_indexer(name) for name in before if not torch.equal(before[name], after[name])}


def gradients(model: GPT2, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_loss_reaches_its_own_weights_and_no_others(checkpointing: bool) -> None:
    config = GPT2Config(vocab_size=61, context_size=32, n_layer=2, n_head=2, n_embed=16, indexer=INDEXER)
    model, tokens = GPT2(config), torch.randint(61, (2, 32))
    model.checkpointing = checkpointing
    found = model(tokens, tokens, indexer_losses=True)
    assert found.indexer_losses.shape == (2,)
    own = gradients(model, found.loss)
    assert {is_indexer(name) for name in own} == {False}
    assert len(own) == sum(not is_indexer(name) for name, _ in model.named_parameters())
    theirs = gradients(model, model(tokens, tokens, indexer_losses=True).indexer_losses.sum())
    assert {is_indexer(name) for name in theirs} == {True} and len(theirs) == len(list(indexer_parameters(model)))
    both = model(tokens, tokens, indexer_losses=True)
    together = gradients(model, both.loss + both.indexer_losses.sum())
    assert together.keys() == own.keys() | theirs.keys()
    assert all(torch.equal(value, (own | theirs)[name]) for name, value in together.items())
    alone = gradients(model, model(tokens, tokens).loss)  # of a model that nobody asks for its indexers
    assert all(torch.equal(value, own[name]) for name, value in alone.items())


@pytest.mark.parametrize(
    ("stage", "learn"), [("dense", {False}), ("warm_up", {True}), ("sparse", {False, True})], ids=STAGES
)
def test_a_stage_changes_what_learns_in_it(staged: Staged, stage: Stage, learn: set[bool]) -> None:
    trainer = trainer_of(staged(stage))
    before = weights(trainer.state.model)
    row = trainer.update(1)
    assert moved(before, weights(trainer.state.model)) == learn
    assert ("indexer_loss" in row) == (True in learn)
    assert (row["gradient_norm"] > 0) == (False in learn)
    assert (row["indexer_gradient_norm"] > 0) == (True in learn)
    assert (trainer.recall() is not None) == (True in learn)


def test_only_the_sparse_stage_hides_keys(staged: Staged) -> None:
    """The loss of the first two is that of the same weights in a dense GPT-2; that of the last is another."""
    for stage in STAGES:
        trainer = trainer_of(staged(stage, folder=f"{staged().run.folder}-{stage}"))
        model = trainer.state.model
        dense = GPT2(replace(model.config, indexer=None))
        dense.load_state_dict(weights(model), strict=False)
        tokens, targets = trainer.training_data.batch(0)
        expected = dense(tokens, targets).loss.item()
        assert (trainer.update(1)["loss"] == pytest.approx(expected, rel=1e-6)) == (stage != "sparse")


def test_a_long_gradient_of_one_shortens_only_its_own(staged: Staged) -> None:
    """With a gradient of the indexers ten thousand times as long, all else takes the same step, to the bit."""
    ends = []
    for factor in (1.0, 1e4):
        trainer = trainer_of(staged("sparse", folder=f"{staged().run.folder}-{factor}"))
        for parameter in indexer_parameters(trainer.state.model):
            parameter.register_hook(lambda gradient, factor=factor: factor * gradient)
        assert trainer.update(1)["indexer_gradient_norm"] > factor * 1e-4
        ends.append({name: value for name, value in weights(trainer.state.model).items() if not is_indexer(name)})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_pieces_of_a_step_give_the_same_losses(staged: Staged) -> None:
    rows = []
    for pieces in (1, 3):
        folder = f"{staged().run.folder}-{pieces}"
        rows.append(trainer_of(staged("sparse", folder=folder, gradient_accumulation=pieces)).update(1))
    for name in ("loss", "indexer_loss", "gradient_norm", "indexer_gradient_norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4)


def test_warming_up_teaches_the_indexers_where_heads_look(staged: Staged, tmp_path: Path) -> None:
    train(staged("dense", "warm_up", steps=60, evaluate_every=10))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")[60:]
    assert rows[-1]["indexer_loss"] < 0.2 * rows[0]["indexer_loss"]
    assert rows[-1]["recall"] > 0.85 > 0.8 > rows[9]["recall"]
    assert len({row["validation_loss"] for row in rows if "validation_loss" in row}) == 1  # nothing else has learned


@pytest.mark.parametrize("stop", [2, 3, 5, 6, 7])
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(staged: Staged, tmp_path: Path, stop: int) -> None:
    class Killed(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == stop + 1:
            raise Killed

    settings = {"evaluate_every": 1, "model": {"dropout": 0.1}}
    train(staged(*STAGES, folder=str(tmp_path / "straight"), **settings))
    with pytest.raises(Killed):
        train(staged(*STAGES, checkpoint_every=stop, **settings), on_step=kill)
    train(staged(*STAGES, checkpoint_every=stop, **settings), resume=True)
    timed = ("tokens_per_second", "seconds", "peak_memory_bytes")
    straight, resumed = (
        [{name: value for name, value in row.items() if name not in timed} for row in read_metrics(folder)]
        for folder in (tmp_path / "straight" / "metrics.jsonl", tmp_path / "run" / "metrics.jsonl")
    )
    assert straight == resumed
    assert all("recall" in row and "indexer_loss" in row for row in straight[3:])
    one, other = (GPT2.load(checkpoint_folders.latest(tmp_path / name)).state_dict() for name in ("straight", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_begins_with_the_weights_of_another(staged: Staged, tmp_path: Path) -> None:
    dense = staged(folder=str(tmp_path / "dense"), model={"indexer": None})
    train(replace(dense, run=replace(dense.run, steps=4)))
    source = checkpoint_folders.latest(tmp_path / "dense")
    trainer = trainer_of(staged("warm_up", "sparse", start_from=str(source)))
    stored = GPT2.load(source).state_dict()
    began = weights(trainer.state.model)
    assert all(torch.equal(value, stored[name]) for name, value in began.items() if not is_indexer(name))
    assert began["h.0.attn.indexer.wk.weight"].std() == pytest.approx(0.02, rel=0.2)
    assert trainer.state.model.config.indexer == INDEXER


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"n_layer": 1}, r"has n_layer=2, and this run 1; give model\.n_layer=2"),
        ({"n_embed": 48}, r"has n_embed=24, and this run 48"),
        ({"positions": "rotary"}, r"has positions='learned'"),
    ],
)
def test_a_model_of_another_shape_is_no_beginning(
    staged: Staged, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    shape = GPT2Config(vocab_size=257, context_size=16, n_layer=2, n_head=3, n_embed=24)
    GPT2(shape).save(tmp_path / "dense")
    with pytest.raises(ValueError, match=f"run.start_from .* {message}"):
        train(staged("warm_up", model=model, start_from=str(tmp_path / "dense")))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(staged("warm_up", folder=str(tmp_path / "other"), start_from=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"phase": [{"stage": "sparse"}]},
            r"phase 1 has stage='sparse', but the model has no indexers; set model\.ind",
        ),
        ({"phase": [{"stage": "warm-up"}]}, r"phase\[0\]\.stage is 'warm-up'; give one of dense, warm_up, sparse"),
        (
            {"model": {"indexer": {"topk": 3}}},
            r"unknown key model\.indexer\.topk; did you mean model\.indexer\.index_topk",
        ),
        ({"model": {"indexer": {"index_topk": 0}}}, r"index_topk is 0"),
        ({"model": {"indexer": {}}}, r"use_sparse_attention is True; leave it out where there is an indexer"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(settings)


def test_the_tree_is_a_file_and_back(staged: Staged, tmp_path: Path) -> None:
    config = staged(*STAGES)
    config.to_toml(tmp_path / "config.toml")
    assert TrainConfig.from_toml(tmp_path / "config.toml") == config
    assert [phase.stage for phase in config.phases] == list(STAGES)
    assert [phase.stage for phase in staged().phases] == ["sparse"]
    assert [phase.stage for phase in TrainConfig().phases] == [None]


def test_recall_is_the_share_of_the_most_looked_at_keys_that_are_chosen() -> None:
    """Against softmaxes over all pairs in float64, summed over heads, and sets of numbers."""
    config = GPT2Config(vocab_size=61, context_size=40, n_layer=2, n_head=4, n_embed=32, indexer=INDEXER)
    torch.manual_seed(0)
    model, tokens = GPT2(config).double().eval(), torch.randint(61, (3, 40))
    for stage in ("warm_up", "sparse"):
        enter_stage(model, stage)
        _, layers = model.features(tokens, return_intermediate=True)
        shares = []
        for indexer, seen in zip(indexers_of(model), layers, strict=True):
            scores = (seen.q @ seen.k.mT * seen.scale).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
            most = scores.softmax(-1).sum(1).topk(4).indices
            keys = chosen(indexer, seen.index).indices[:, 0]
            for row in range(3):
                for query in range(4, 40):
                    shares.append(len(set(most[row, query].tolist()) & set(keys[row, query].tolist())) / 4)
        assert recall(indexers_of(model), layers) == pytest.approx(sum(shares) / len(shares), rel=1e-12)
    _, layers = model.features(tokens[:, :4], return_intermediate=True)
    assert recall(indexers_of(model), layers) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"activation_checkpointing": "selective"},
        {"gradient_accumulation": 2},
    ],
    ids=str,
)
def test_every_way_to_train_goes_through_the_stages(staged: Staged, tmp_path: Path, settings: dict[str, Any]) -> None:
    seen: list[dict[str, Any]] = []
    train(staged(*STAGES, folder=str(tmp_path / "plain"), evaluate_every=1), on_step=seen.append)
    for row, plain in zip(read_metrics_of(staged(*STAGES, evaluate_every=1, **settings)), seen, strict=True):
        assert row["loss"] == pytest.approx(plain["loss"], rel=2e-2)
        assert row.keys() == plain.keys()
        if "indexer_loss" in plain:
            assert row["indexer_loss"] == pytest.approx(plain["indexer_loss"], rel=0.2, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_goes_through_the_stages_as_the_cpu_does(staged: Staged, tmp_path: Path, precision: str) -> None:
    model = {"n_embed": 96, "indexer": replace(INDEXER, index_head_dim=32, qk_rope_head_dim=16)}
    settings: dict[str, Any] = {"evaluate_every": 1, "model": model}
    cpu = read_metrics_of(staged(*STAGES, folder=str(tmp_path / "cpu"), **settings))
    gpu = read_metrics_of(staged(*STAGES, device="cuda", precision=precision, **settings))
    for row, plain in zip(gpu, cpu, strict=True):
        assert row["loss"] == pytest.approx(plain["loss"], rel=3e-2) and row.keys() == plain.keys()
    assert gpu[-1]["recall"] == pytest.approx(cpu[-1]["recall"], abs=0.1)
