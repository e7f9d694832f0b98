"""The whole benchmark on a tiny problem: everything named is measured, in turns, and judged first."""

import itertools
from dataclasses import replace

import pytest
import torch

from gossamer.bench import driver
from gossamer.bench.case import Case, Contender
from gossamer.bench.config import BenchConfig, ModelBench
from gossamer.bench.results import Absence, Measurement
from gossamer.bench.setting import Setting, decide

TINY = BenchConfig(
    lengths=(64, 96),
    heads=3,
    head_width=16,
    window=16,
    model=ModelBench(lengths=(64,), layers=1, vocabulary=64),
    repeats=2,
    device="cpu",
    threads=1,
)


def test_every_case_measures_every_contender_that_can_run_here():
    heard = []
    results = driver.run(TINY, on_outcome=heard.append)
    assert heard == list(results.outcomes)
    assert results.cases == ("attention forward", "attention forward + backward", "GPT-2 training step")
    measured = [m for case in results.cases for m in results.measurements(case)]
    assert all(0 < m.fastest <= m.seconds <= m.slowest and m.repeats == 2 for m in measured)
    assert not [a for case in results.cases for a in results.absences(case) if a.status == "failed"]
    ran = {m.contender for m in measured}
    assert {"sdpa", "naive", "document", "window", "gpt2 dense", "gpt2 sparse"} <= ran
    assert results.config.precision == "fp32" and results.machine.threads == 1


def test_only_what_is_named_is_measured():
    config = replace(TINY, lengths=(64,), cases=("forward",), contenders=("sdpa",))
    assert [(m.contender, m.length) for m in driver.run(config).outcomes] == [("sdpa", 64)]


def test_threads_are_put_back():
    before = torch.get_num_threads()
    driver.run(replace(TINY, lengths=(8,), cases=("forward",), contenders=("sdpa",)))
    assert torch.get_num_threads() == before


def test_contenders_take_turns():
    order = []
    contenders = tuple(Contender(name, lambda n, name=name: lambda: order.append(name), lambda: None) for name in "ab")
    setting = decide(BenchConfig(repeats=3, warmup=1, device="cpu", threads=1))
    measurements = list(driver.measure(Case("case", (8,), contenders), setting, lambda outcome: None))
    assert [m.repeats for m in measurements] == [3, 3]
    rounds = "".join(order).removeprefix("aabb")  # warm-up and memory of each, then three rounds
    assert len(rounds) == 6 and all(set(rounds[at : at + 2]) == {"a", "b"} for at in (0, 2, 4))
    assert {rounds[at : at + 2] for at in (0, 2, 4)} == {"ab", "ba"}  # in orders of their own


def test_lengths_rise_whatever_their_order_and_come_once():
    case = Case("case", (32, 8, 32, 8), (Contender("a", lambda n: lambda: None, lambda: None),))
    measurements = driver.measure(case, decide(TINY), lambda outcome: None)
    assert [m.length for m in measurements] == [8, 32]


def test_a_failing_contender_leaves_the_others_alone():
    contenders = (
        Contender("wrong", lambda n: pytest.fail, lambda: "wrong pairs"),
        Contender("right", lambda n: lambda: None, lambda: None),
    )
    measurements = driver.measure(Case("case", (8, 16), contenders), decide(TINY), lambda outcome: None)
    assert [type(m) for m in measurements] == [Absence, Measurement] * 2


def test_the_inputs_of_a_length_are_shared_and_repeatable():
    setting = Setting(BenchConfig(device="cpu", precision="fp32", heads=2, head_width=4))
    first, again = setting.draw(5), setting.draw(5)
    assert [x.shape for x in first] == [(1, 2, 5, 4)] * 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))


def test_an_absent_gpu_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device is 'cuda:3', but PyTorch sees no GPU; give 'cpu' or 'auto'"):
        decide(BenchConfig(device="cuda:3"))
