"""A step is the weighted mean over its pieces, in the precision asked for, or a failure with a name."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.models.gpt2 import GPT2, GPT2Output
from gossamer.nn import keeping_attention
from gossamer.training.config import GuardConfig, OptimizerConfig, TrainConfig
from gossamer.training.distributed import ALONE
from gossamer.training.run_folder import start
from gossamer.training.trainer import Diverged, Trainer

Tiny = Callable[..., TrainConfig]
TIMES = {"seconds": 0.0, "tokens_per_second": 0.0}


@pytest.fixture
def trainer(tiny: Tiny, tmp_path) -> Callable[..., Trainer]:
    made = []

    def build(guard: dict[str, Any] | None = None, **settings) -> Trainer:
        config = tiny(folder=str(tmp_path / f"run{len(made)}"), **settings)
        config = replace(config, guard=GuardConfig(**(guard or {})))
        made.append(config)
        start(config)
        return Trainer(config, ALONE)

    return build


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])


def moments_of(trainer: Trainer) -> Tensor:
    """All that the optimizer remembers."""
    return torch.cat([x.flatten() for state in trainer.state.optimizer.state.values() for x in state.values()])


def test_a_step_reads_its_batch_at_its_learning_rate(trainer) -> None:
    each = trainer(model={"dropout": 0.0})
    for step, rate in ((1, 0.0005), (2, 0.001)):
        expected = each.state.model(*each.training_data.batch(step - 1)).loss.item()
        row = each.update(step)
        assert (row["step"], each.state.step) == (step, step)
        assert row["loss"] == pytest.approx(expected, rel=1e-6)
        assert row["learning_rate"] == rate
        assert {group["lr"] for group in each.state.optimizer.param_groups} == {rate}


@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_accumulated_pieces_equal_the_whole_batch(trainer, pieces: int) -> None:
    """Four sequences in three pieces are two, one and one: each must count by its tokens."""
    no_dropout = {"dropout": 0.0}
    whole, parts = trainer(model=no_dropout), trainer(model=no_dropout, gradient_accumulation=pieces)
    for step in (1, 2):
        one, many = whole.update(step), parts.update(step)
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert many["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)


def test_a_piece_counts_by_its_targets(trainer, monkeypatch) -> None:
    """Targets left out (-1) weigh nothing, and a piece without any changes nothing."""
    one, many = trainer(model={"dropout": 0.0}), trainer(model={"dropout": 0.0}, gradient_accumulation=4)
    tokens, targets = one.training_data.batch(0)
    targets = targets.clone()
    targets[0, 3:] = -1
    targets[2] = -1
    rows = []
    for each in (one, many):
        monkeypatch.setattr(each.training_data, "batch", lambda *_: (tokens, targets))
        rows.append(each.update(1))
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-6)
    assert rows[1]["gradient_norm"] == pytest.approx(rows[0]["gradient_norm"], rel=1e-5)


def test_activation_checkpointing_changes_no_bit(trainer) -> None:
    losses = []
    for saving, keeping in (("none", False), ("full", True), ("selective", keeping_attention)):
        each = trainer(activation_checkpointing=saving)
        assert each.state.model.checkpointing == keeping
        losses.append([each.update(step)["loss"] for step in (1, 2, 3)])
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("sparse", [True, False])
def test_low_precision_follows_fp32(trainer, precision: str, sparse: bool) -> None:
    full, low = (trainer(precision=p, sparse=sparse, model={"dropout": 0.0}) for p in ("fp32", precision))
    for step in range(1, 5):
        expected, row = full.update(step), low.update(step)
        assert row["loss"] == pytest.approx(expected["loss"], rel=2e-2)
        assert row["loss"] != expected["loss"]
        assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=5e-2)
    assert weights(low).dtype == torch.float32
    assert low.state.scaler.is_enabled() == (precision == "fp16")


def test_the_gradient_is_clipped(trainer, monkeypatch) -> None:
    seen = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, most: seen.append(most) or clip(p, most))
    each = trainer()
    assert each.update(1)["gradient_norm"] > 0
    assert seen == [OptimizerConfig().gradient_clip]


def test_padding_of_the_vocabulary_is_never_predicted(trainer) -> None:
    model = trainer(model={"vocab_size": 320}).state.model
    logits = model(torch.zeros(1, 2, dtype=torch.int64)).logits
    assert logits[..., 257:].eq(-math.inf).all()
    assert logits[..., :257].isfinite().all()


def test_an_evaluation_is_the_mean_over_the_validation_split_and_changes_nothing(trainer) -> None:
    each = trainer(evaluate_sequences=10**6)
    state = torch.get_rng_state()
    loss = each.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    assert each.state.model.training
    each.state.model.eval()
    windows = list(each.validation_data.in_order(10**6))
    expected = each.state.model(torch.cat([t for t, _ in windows]), torch.cat([y for _, y in windows])).loss
    assert len(windows[-1][0]) < len(windows[0][0])  # a short last batch counts for less
    assert loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_left_out_named_and_changes_nothing(trainer, monkeypatch, value: float) -> None:
    each = trainer(guard={"most_skips": 2})
    each.update(1)
    before, forward, moments = weights(each), GPT2.forward, moments_of(each)

    def spoiled(model: GPT2, tokens: Tensor, targets: Tensor) -> GPT2Output:
        output = forward(model, tokens, targets)
        return output._replace(loss=output.loss * value)

    monkeypatch.setattr(GPT2, "forward", spoiled)
    for step in (2, 3):
        row = each.update(step)
        assert (row["loss"], row["skipped"], each.state.step) == (None, f"loss is {value}", step)
    with pytest.raises(
        Diverged,
        match=rf"step 4: loss is {value}, and the 2 steps before it were left out, at .* 0\.000\d+; .*lower optimizer",
    ) as error:
        each.update(4)
    assert error.value.step == 4
    assert torch.equal(weights(each), before) and torch.equal(moments_of(each), moments)
    assert each.state.step == 3


def test_the_step_after_one_that_was_left_out_is_the_usual_one(trainer, monkeypatch) -> None:
    """What a spoiled gradient leaves behind is nothing: the next step is that of a run without it."""
    spoiled, other = trainer(model={"dropout": 0.0}), trainer(model={"dropout": 0.0})
    hook = spoiled.state.model.wpe.weight.register_hook(lambda gradient: gradient * math.nan)
    assert "skipped" in spoiled.update(1)
    hook.remove()
    row = spoiled.update(2)
    other.state.step = 1
    assert {**other.update(2), **TIMES} == {**row, **TIMES} and "skipped" not in row
    assert torch.equal(weights(spoiled), weights(other))


def test_a_spike_is_left_out(trainer) -> None:
    each = trainer(steps=20, guard={"spike_factor": 10.0, "spike_window": 4})
    for step in range(1, 6):
        assert "skipped" not in each.update(step)
    before = weights(each)
    hook = each.state.model.wpe.weight.register_hook(lambda gradient: gradient * 1e4)
    row = each.update(6)
    assert "gradient_norm is" in row["skipped"] and "over 10 times the median of the last 4" in row["skipped"]
    assert math.isfinite(row["loss"]) and row["gradient_norm"] > 10
    assert torch.equal(weights(each), before)
    hook.remove()
    assert "skipped" not in each.update(7)
    assert not torch.equal(weights(each), before)


def test_an_evaluation_that_is_not_finite_is_named(trainer) -> None:
    each = trainer()
    each.update(1)
    with torch.no_grad():
        each.state.model.ln_f.weight.fill_(math.nan)
    with pytest.raises(Diverged, match=r"step 1: the validation loss is nan"):
        each.evaluate()


def poison_gradients(each: Trainer) -> None:
    each.state.model.wpe.weight.register_hook(lambda gradient: gradient * math.nan)


def test_a_gradient_that_is_not_finite_ends_the_run_at_once_where_none_may_be_left_out(trainer) -> None:
    each = trainer(guard={"most_skips": 0})
    poison_gradients(each)
    before = weights(each)
    with pytest.raises(Diverged, match=r"step 1: gradient_norm is nan, and the 0 steps before .* at .* 0\.0005"):
        each.update(1)
    assert torch.equal(weights(each), before)


def test_fp16_leaves_out_steps_that_overflow_but_not_for_ever(trainer) -> None:
    each = trainer(precision="fp16", steps=100)
    poison_gradients(each)
    before, scale, most = weights(each), each.state.scaler.get_scale(), GuardConfig().most_skips
    for step in range(1, most + 1):
        assert each.update(step)["gradient_norm"] is None
        assert each.state.scaler.get_scale() == scale / 2**step
    assert torch.equal(weights(each), before)
    with pytest.raises(Diverged, match="gradient_norm is nan, and the 20 steps before it were left out"):
        each.update(most + 1)


def test_weights_that_are_not_finite_are_named(trainer) -> None:
    each = trainer()
    each.update(1)
    each.require_finite()
    with torch.no_grad():
        each.state.model.wte.weight[0, 0] = math.inf
    with pytest.raises(Diverged, match=r"step 1: the weights wte\.weight are not finite"):
        each.require_finite()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it itself
def test_a_compiled_model_takes_the_same_steps(trainer) -> None:
    plain, compiled = (trainer(compile=c, sparse=False, model={"dropout": 0.0}) for c in (False, True))
    for step in (1, 2):
        assert compiled.update(step)["loss"] == pytest.approx(plain.update(step)["loss"], rel=1e-4)
