"""The floor is worked out on paper, and the ceilings are measured."""

import pytest
import torch

from gossamer.bench.attention_cases import FORWARD, TRAINING, least_work
from gossamer.bench.ceilings import measure_ceilings
from gossamer.bench.config import BenchConfig
from gossamer.bench.contenders import attentions
from gossamer.bench.floor import Ceilings, Work
from gossamer.bench.setting import decide

SMALL = {"head_width": 8, "window": 16, "contenders": ("window",), "device": "cpu", "threads": 1}


def test_the_slower_of_arithmetic_and_memory_is_the_floor():
    work = Work(operations=12e9, bytes=3e9)
    assert work.floor(Ceilings(operations=4e9, bytes=1e10)) == pytest.approx(3)
    assert work.floor(Ceilings(operations=4e12, bytes=1e10)) == pytest.approx(0.3)


@pytest.mark.parametrize(("work", "times", "queries", "keys"), [(FORWARD, 1, 2, 2), (TRAINING, 3.5, 6, 6)])
def test_the_work_counts_visible_pairs_and_each_tensor_once(work, times, queries, keys):
    setting = decide(BenchConfig(heads=6, key_heads=2, tokens=256, **SMALL))
    (window,) = attentions(setting)
    pairs = 4 * 6 * (64 * 16 - 16 * 15 / 2)  # 256 tokens are four sequences of 64; the first 15 queries see less
    least = least_work(setting, window, work, 64)
    assert least.operations == times * 2 * 2 * 8 * pairs
    assert least.bytes == 256 * 8 * 4 * (queries * 6 + keys * 2)


def test_the_ceilings_are_rates_of_this_machine_measured_once():
    first = measure_ceilings(torch.device("cpu"), torch.float32, 1)
    assert 1e8 < first.operations < 1e14 and 1e8 < first.bytes < 1e13
    assert measure_ceilings(torch.device("cpu"), torch.float32, 1) is first


@pytest.mark.gpu
def test_a_gpu_reaches_what_no_cpu_does():
    device = torch.device("cuda")
    reached = measure_ceilings(device, torch.bfloat16, 1)
    assert reached.operations > 2e13 and reached.bytes > 2e11
