"""The two attention cases: what a step does, and that each attention is judged once for both."""

from dataclasses import replace

import pytest
import torch

from gossamer.bench import driver
from gossamer.bench.attention_cases import LAUNCH_LENGTH, attention_fault, forward_case, launch_case, training_case
from gossamer.bench.config import BenchConfig
from gossamer.bench.contenders import Attention, attentions
from gossamer.bench.setting import Setting, decide
from gossamer.patterns import Causal, Window


@pytest.fixture
def setting() -> Setting:
    return decide(BenchConfig(lengths=(64,), heads=2, head_width=8, window=16, device="cpu", threads=1))


def right(attention: Attention) -> None:
    return None


def test_a_forward_step_builds_no_graph(setting):
    case = forward_case(setting, attentions(setting), right)
    out = case.contenders[0].prepare(64)()
    assert out.shape == (1, 2, 64, 8) and not out.requires_grad


def test_a_training_step_gives_three_gradients(setting):
    case = training_case(setting, attentions(setting), right)
    gradients = case.contenders[0].prepare(64)()
    assert len(gradients) == 3 and all(g.abs().sum() > 0 for g in gradients)


def test_contenders_work_on_the_same_numbers(setting):
    outs = {
        c.name: c.prepare(64)()
        for c in forward_case(setting, attentions(setting), right).contenders
        if c.name in ("sdpa", "naive")
    }
    torch.testing.assert_close(outs["sdpa"], outs["naive"])


def test_the_textbook_softmax_is_known_to_need_square_memory(setting):
    naive = next(c for c in forward_case(setting, attentions(setting), right).contenders if c.name == "naive")
    assert naive.needs(65536) == 3 * 2 * 4 * 65536**2
    assert naive.needs(128) == 4 * naive.needs(64)


def test_an_attention_is_judged_once_for_all_cases(setting, monkeypatch):
    judged = []
    monkeypatch.setattr(driver, "attention_fault", lambda setting, attention: judged.append(attention.name))
    setting = Setting(replace(setting.config, cases=("forward", "training"), contenders=("sdpa", "window")))
    for case in driver.cases(setting):
        list(driver.measure(case, setting, lambda outcome: None))
    assert judged == ["sdpa", "window"]


def test_a_wrong_attention_is_found_on_the_trial_of_the_setting(setting):
    sdpa = attentions(setting)[0]
    liar = replace(sdpa, pattern=lambda n: Causal() & Window(16))
    assert attention_fault(setting, sdpa) is None
    assert "wrong pairs" in attention_fault(setting, liar)


def test_a_step_is_judged_at_its_own_size(setting):
    window = next(a for a in attentions(setting) if a.name == "window")
    liar = replace(window, pattern=lambda n: Causal() & Window(17))
    for make in (forward_case, training_case):
        honest, lying = make(setting, (window, liar), right).contenders
        assert honest.fault_at(200, honest.prepare(200)) is None
        assert lying.fault_at(200, lying.prepare(200)).startswith("error of ")


def test_tokens_decide_the_batch(setting):
    setting = Setting(replace(setting.config, tokens=256, key_heads=1))
    case = forward_case(setting, attentions(setting)[:1], right)
    assert [case.contenders[0].prepare(n)().shape[0] for n in (64, 128, 512)] == [4, 2, 1]


def test_a_launch_is_a_forward_call_on_few_tokens(setting):
    setting = Setting(replace(setting.config, tokens=65536))
    case = launch_case(setting, attentions(setting), right)
    assert case.lengths == (LAUNCH_LENGTH,) and case.clock is not None
    assert case.contenders[0].prepare(LAUNCH_LENGTH)().shape == (1, 2, LAUNCH_LENGTH, 8)
    assert case.contenders[0].work is None
