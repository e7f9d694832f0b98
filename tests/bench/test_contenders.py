"""Each contender computes exactly the pattern under whose name it is measured."""

from typing import get_args

import pytest
import torch

from gossamer.bench.config import AttentionName, BenchConfig
from gossamer.bench.contenders import KNOWN, attentions
from gossamer.bench.gate import Trial, fault
from gossamer.bench.setting import decide

CONFIG = BenchConfig(heads=3, head_width=16, window=40, device="cpu", threads=1)
SETTING = decide(CONFIG)
CPU_TRIAL = Trial(length=113, heads=3, width=16, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("attention", attentions(SETTING), ids=lambda attention: attention.name)
def test_it_computes_what_it_claims(attention):
    if attention.missing:
        pytest.skip(attention.missing)
    n = CPU_TRIAL.length
    assert fault(attention.at(n), attention.pattern(n), CPU_TRIAL) is None


def test_every_name_that_can_be_asked_for_is_known():
    assert tuple(KNOWN) == get_args(AttentionName)


def test_what_cannot_run_here_says_why():
    absent = {a.name: a.missing for a in attentions(SETTING) if a.name in ("cudnn", "flex")}
    assert absent == {"cudnn": "runs on CUDA only", "flex": "runs on CUDA only"}


def test_only_the_textbook_softmax_makes_whole_matrices():
    assert [a.name for a in attentions(SETTING) if a.materialises] == ["naive"]
