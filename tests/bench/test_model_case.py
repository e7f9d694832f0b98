"""The model case trains for real, and its gate compares sparse with dense."""

from dataclasses import replace

import pytest
import torch

from gossamer.bench import model_case
from gossamer.bench.config import BenchConfig, ModelBench
from gossamer.bench.setting import Setting, decide
from gossamer.config import SparseAttentionConfig

TINY = ModelBench(lengths=(64,), layers=1, vocabulary=64)


@pytest.fixture
def setting() -> Setting:
    return decide(BenchConfig(heads=3, head_width=16, device="cpu", threads=1, model=TINY))


def test_both_models_pass_the_gate(setting):
    contenders = model_case.model_case(setting).contenders
    assert [(c.name, c.fault()) for c in contenders] == [("gpt2 dense", None), ("gpt2 sparse", None)]


def test_a_sparse_model_that_computes_something_else_is_named(setting, monkeypatch):
    def narrow(**fields):
        return SparseAttentionConfig(**fields | {"window_size": 4})

    monkeypatch.setattr(model_case, "SparseAttentionConfig", narrow)
    found = model_case.model_case(setting).contenders[1].fault()
    assert "of the sparse model that sees everything is" in found


@pytest.mark.parametrize("number", [0, 1])
def test_a_step_trains(number, setting, monkeypatch):
    """The weights move, and no gradient is left to be added to the next step's."""
    models = []
    build = model_case.GPT2
    monkeypatch.setattr(model_case, "GPT2", lambda config: models.append(build(config)) or models[0])
    step = model_case.model_case(setting).contenders[number].prepare(64)
    before = [p.detach().clone() for p in models[0].parameters()]
    step()
    assert models[0].config.use_sparse_attention == bool(number)
    assert all(not torch.equal(p, old) for p, old in zip(models[0].parameters(), before, strict=True))
    assert all(p.grad is None for p in models[0].parameters())


def test_half_precision_trains_under_autocast(setting):
    half = Setting(replace(setting.config, precision="bf16"))
    for contender in model_case.model_case(half).contenders:
        contender.prepare(64)()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sparse_model_is_as_exact_as_its_dense_formula(setting, precision):
    some = Setting(replace(setting.config, precision=precision))
    sparse = SparseAttentionConfig(window_size=16).for_heads(3)
    assert model_case.precision_fault(some, sparse, 64) is None


def test_a_sparse_model_that_is_less_exact_is_named(setting, monkeypatch):
    attend = model_case.SparseAttention.mix
    monkeypatch.setattr(model_case.SparseAttention, "mix", lambda *args: 1.01 * attend(*args))
    found = model_case.precision_fault(setting, SparseAttentionConfig(window_size=16).for_heads(3), 64)
    assert "of the sparse model is" in found
