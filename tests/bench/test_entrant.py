"""Who may start: the gate, the machine, memory, time, and what happens when a step raises."""

import time

import pytest

from gossamer.bench.case import Contender
from gossamer.bench.config import BenchConfig
from gossamer.bench.entrant import Entrant, Heat
from gossamer.bench.setting import Setting
from gossamer.measure import MIB

SETTING = Setting(BenchConfig(device="cpu", precision="fp32", memory_gib=1.0, seconds=10.0, repeats=5))


def sound() -> None:
    return None


def never(length: int):
    raise AssertionError("a contender that stays out is not prepared")


def entrant(contender: Contender, seconds: float = 0.001, setting: Setting = SETTING) -> Entrant:
    def clock(step) -> float:
        step()
        return seconds

    return Entrant(contender, "case", setting, clock)


def test_one_that_fails_the_gate_is_never_run():
    outcome = entrant(Contender("wrong", never, lambda: "sees too much")).enter(512)
    assert (outcome.status, outcome.reason) == ("failed", "sees too much")


def test_a_gate_that_raises_is_a_failure_too():
    def broken() -> None:
        raise RuntimeError("no kernel\nand a long story")

    outcome = entrant(Contender("broken", never, broken)).enter(512)
    assert (outcome.status, outcome.reason) == ("failed", "RuntimeError: no kernel")


def test_one_that_is_missing_is_skipped_without_being_judged():
    def judged() -> None:
        raise AssertionError

    outcome = entrant(Contender("absent", never, judged, missing="not installed")).enter(512)
    assert (outcome.status, outcome.reason) == ("skipped", "not installed")


def test_too_much_memory_is_skipped_with_the_figures():
    greedy = Contender("greedy", never, sound, needs=lambda n: 3 * 2**30)
    outcome = entrant(greedy).enter(512)
    assert outcome.status == "skipped"
    assert outcome.reason == "needs about 3.0 GiB, allowed are 1.0 (--memory-gib)"


def test_too_much_time_is_foreseen_from_the_lengths_before():
    runner = entrant(Contender("quadratic", lambda n: sound, sound))
    for length, seconds in ((1024, 1.0), (2048, 4.0)):
        runner.finish(length, Heat(sound, 0, 1, [seconds]))
    outcome = runner.enter(4096)
    assert outcome.reason == "one call would take about 16 s, allowed are 10 (--seconds)"


def test_too_much_memory_is_foreseen_from_the_lengths_before():
    runner = entrant(Contender("quadratic", lambda n: sound, sound))
    for length, mebibytes in ((1024, 100), (2048, 400)):
        runner.finish(length, Heat(sound, mebibytes * MIB, 1, [1e-3]))
    assert runner.enter(4096).reason == "needs about 1.6 GiB, allowed are 1.0 (--memory-gib)"


def test_one_length_alone_foresees_no_more_than_linear_growth():
    runner = entrant(Contender("linear", lambda n: sound, sound))
    runner.finish(1024, Heat(sound, 10 * MIB, 1, [1.0]))
    assert isinstance(runner.enter(8192), Heat)
    assert "would take about 16 s" in runner.enter(16384).reason


def test_the_first_length_always_starts():
    assert isinstance(entrant(Contender("slow", lambda n: sound, sound), seconds=100).enter(65536), Heat)


@pytest.mark.parametrize(("seconds", "repeats"), [(0.001, 5), (4.0, 2), (30.0, 1)])
def test_repeats_fit_the_time_allowed(seconds, repeats):
    assert entrant(Contender("steady", lambda n: sound, sound), seconds).enter(512).repeats == repeats


def test_the_warm_up_comes_before_memory_is_measured():
    calls = []

    def prepare(length):
        return lambda: calls.append(bytearray(64 * MIB))  # held: only a later call can add to the memory

    heat = entrant(Contender("growing", prepare, sound)).enter(512)
    assert len(calls) == 2
    assert abs(heat.peak_bytes - 64 * MIB) < 8 * MIB


def test_a_step_that_raises_ends_this_contender_only_and_for_good():
    def prepare(length):
        raise MemoryError("no room")

    runner = entrant(Contender("unlucky", prepare, sound))
    assert runner.enter(512).reason == "at length 512: MemoryError: no room"
    assert runner.enter(1024).status == "failed"


def test_the_median_is_reported_with_its_spread():
    runner = entrant(Contender("steady", lambda n: sound, sound))
    m = runner.finish(512, Heat(sound, 7, 3, [3.0, 1.0, 2.0]))
    assert (m.seconds, m.fastest, m.slowest, m.repeats, m.peak_bytes) == (2.0, 1.0, 3.0, 3, 7)


def test_wrong_numbers_at_full_size_end_this_contender():
    wrong = Contender("wrong", lambda n: sound, sound, fault_at=lambda n, step: "dq is wrong" if n > 512 else None)
    runner = entrant(wrong)
    assert isinstance(runner.enter(512), Heat)
    outcome = runner.enter(1024)
    assert (outcome.status, outcome.reason) == ("failed", "at length 1024: ArithmeticError: dq is wrong")


def test_what_is_made_once_is_timed_apart():
    runner = entrant(Contender("masked", lambda n: sound, sound, setup=lambda n: time.sleep(n / 1e4)), seconds=1e-6)
    heat = runner.enter(300)
    heat.times.append(1e-6)
    m = runner.finish(300, heat)
    assert 0.03 <= m.setup_seconds < 0.5 and m.seconds == 1e-6
