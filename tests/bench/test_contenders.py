"""Each contender computes exactly the pattern under whose name it is measured."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from gossamer.bench.config import AttentionName, BenchConfig
from gossamer.bench.contenders import KNOWN, SINKS, TOKENS, Attention, attentions
from gossamer.bench.gate import Trial, fault
from gossamer.bench.setting import decide

CONFIG = BenchConfig(peers=True, heads=3, head_width=16, window=40, device="cpu", threads=1)
SETTING = decide(CONFIG)
GROUPED = decide(replace(CONFIG, heads=6, key_heads=2))
CPU_TRIAL = Trial(length=113, heads=3, width=16, dtype=torch.float32, device=torch.device("cpu"))


def judged(attention: Attention, trial: Trial) -> str | None:
    if attention.missing:
        pytest.skip(attention.missing)
    return fault(attention.at(trial.length), attention.pattern(trial.length), trial)


@pytest.mark.parametrize("attention", attentions(SETTING), ids=lambda attention: attention.name)
def test_it_computes_what_it_claims(attention):
    assert judged(attention, CPU_TRIAL) is None


@pytest.mark.parametrize("attention", attentions(GROUPED), ids=lambda attention: attention.name)
def test_it_does_so_with_grouped_heads(attention):
    assert judged(attention, replace(CPU_TRIAL, heads=6, key_heads=2)) is None


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # compilers of other libraries are talkative
@pytest.mark.parametrize("name", get_args(AttentionName))
@pytest.mark.parametrize("key_heads", [6, 2])
def test_it_does_so_on_a_gpu(name, key_heads):
    config = replace(
        CONFIG, heads=6, key_heads=key_heads, head_width=64, device="cuda", contenders=(name,), peers=False
    )
    (attention,) = attentions(decide(config))
    trial = Trial(113, 6, 64, torch.bfloat16, torch.device("cuda"), key_heads=key_heads)
    assert judged(attention, trial) is None


def test_every_name_that_can_be_asked_for_is_known():
    assert tuple(KNOWN) == get_args(AttentionName)


def test_what_cannot_run_here_says_why():
    names = {"cudnn", "flash", "flex", "flex-document", "flex-window+tokens", "fa4"}
    absent = {a.name: a.missing for a in attentions(SETTING) if a.missing and a.name != "local-attention"}
    assert absent == dict.fromkeys(names, "runs on CUDA only")


def test_local_attention_knows_no_grouped_heads():
    absent = {a.name: a.missing for a in attentions(GROUPED)}
    assert absent["local-attention"] == "needs as many key heads as query heads"


@pytest.mark.parametrize("length", [113, 1024])
def test_the_tokens_are_spread_evenly_and_about_as_many_as_promised(length):
    (joint,) = attentions(decide(replace(CONFIG, contenders=("window+tokens",), peers=False)))
    last = joint.pattern(length).dense_mask(length)[-1, : length - CONFIG.window]
    seen = last.nonzero()[0].tolist()
    assert seen[:SINKS] == list(range(SINKS))
    assert len(set(np.diff(seen[SINKS + 1 :]))) == 1 and (length < 1024 or len(seen) == SINKS + TOKENS - 3)


def test_only_the_textbook_softmax_makes_whole_matrices():
    assert [a.name for a in attentions(SETTING) if a.materialises] == ["naive"]
