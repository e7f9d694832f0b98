"""A step is left out for what its own numbers say, and what is remembered of others survives as JSON."""

from __future__ import annotations

import json
import math
import random

import pytest

from gossamer.training.config import GuardConfig
from gossamer.training.guard import Guard


def judged(guard: Guard, *norms: float) -> list[bool]:
    """Whether steps with such gradients are taken."""
    return [guard.fault({"loss": 1.0}, {"gradient_norm": norm}) is None for norm in norms]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "indexer_loss", "gradient_norm", "indexer_gradient_norm"])
def test_a_number_that_is_not_finite_is_a_fault_with_its_name(name: str, value: float) -> None:
    losses, norms = {"loss": 1.0, "indexer_loss": 1.0}, {"gradient_norm": 1.0, "indexer_gradient_norm": 1.0}
    guard = Guard(GuardConfig())
    assert guard.fault(losses, norms) is None
    (losses if name in losses else norms)[name] = value
    assert guard.fault(losses, norms) == f"{name} is {value}"


def test_a_spike_is_more_than_the_factor_times_the_median_of_a_full_window() -> None:
    guard = Guard(GuardConfig(spike_factor=4, spike_window=5))
    assert judged(guard, 1, 50, 2, 3, 1000) == [True] * 5  # the window is not full yet; then its median is 3
    assert judged(guard, math.nextafter(12, 13), 12) == [False, True]  # and now 12, of 50, 2, 3, 1000 and 12
    assert judged(guard, math.nextafter(48, 49), 48) == [False, True]


def test_the_median_is_that_of_the_steps_taken() -> None:
    guard = Guard(GuardConfig(spike_factor=2, spike_window=3))
    assert judged(guard, 1, 1, 1) == [True] * 3
    assert judged(guard, 2, 2.01, 2.01, 2.01, 2) == [True, False, False, False, True]  # skipped ones are no measure
    assert judged(guard, 2.01) == [True]  # (1, 2, 2)


def test_skips_are_counted_in_a_row_and_the_limit_is_exact() -> None:
    guard = Guard(GuardConfig(most_skips=2))
    for norms, skips, exhausted in (
        ([math.nan], 1, False),
        ([math.nan], 2, False),
        ([1.0], 0, False),
        ([math.inf, math.nan, math.nan], 3, True),
    ):
        judged(guard, *norms)
        assert (guard.skips, guard.is_exhausted) == (skips, exhausted)
    first = Guard(GuardConfig(most_skips=0))
    judged(first, math.nan)
    assert first.is_exhausted


def test_each_kind_of_gradient_has_a_measure_of_its_own() -> None:
    guard = Guard(GuardConfig(spike_factor=3, spike_window=2))
    for _ in range(2):
        assert guard.fault({}, {"gradient_norm": 1.0, "indexer_gradient_norm": 100.0}) is None
    assert guard.fault({}, {"gradient_norm": 1.0, "indexer_gradient_norm": 290.0}) is None
    assert "gradient_norm is 4," in guard.fault({}, {"gradient_norm": 4.0, "indexer_gradient_norm": 100.0})


def test_gradients_that_were_zero_are_no_measure() -> None:
    guard = Guard(GuardConfig(spike_factor=3, spike_window=2))
    assert judged(guard, 0, 0, 5) == [True] * 3


def test_a_phase_is_judged_by_itself() -> None:
    guard = Guard(GuardConfig(spike_factor=2, spike_window=2))
    assert judged(guard, 1, 1, 9) == [True, True, False]
    guard.enter(0)  # it is in it
    assert judged(guard, 9) == [False]
    guard.enter(1)
    assert judged(guard, 9, 9, 9, 19) == [True, True, True, False]


def test_inf_and_the_default_leave_good_runs_alone() -> None:
    draws = random.Random(0)
    norms = [math.exp(draws.gauss(0, 1)) / (1 + step / 50) for step in range(2000)]
    assert all(judged(Guard(GuardConfig()), *norms))
    assert all(judged(Guard(GuardConfig(spike_factor=math.inf)), *[1.0] * 200, 1e30))


def test_what_it_remembers_goes_through_json_and_changes_no_decision() -> None:
    draws, settings = random.Random(1), GuardConfig(spike_factor=1.5, spike_window=7)
    norms = [draws.choice([draws.uniform(0.5, 2), math.nan]) for _ in range(300)]
    straight, resumed, decisions = Guard(settings), Guard(settings), []
    for step, norm in enumerate(norms):
        for guard in (straight, resumed):
            guard.enter(step // 100)
        decisions.append((judged(straight, norm), judged(resumed, norm)))
        stored = json.dumps(resumed.state_dict(), allow_nan=False)
        resumed = Guard(settings)
        resumed.load_state_dict(json.loads(stored))
        assert resumed.skips == straight.skips
    assert all(one == other for one, other in decisions)
    assert {taken for (taken,), _ in decisions} == {True, False}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spike_factor": 1}, "spike_factor is 1; give a number above 1, or inf"),
        ({"spike_factor": math.nan}, "spike_factor is nan"),
        ({"spike_window": 0}, "spike_window"),
        ({"most_skips": -1}, "most_skips"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GuardConfig(**settings)
