"""The assignment against all assignments, which are few here."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer import Causal, PerHead, Sinks, Strided, Window, parse
from gossamer.convert.assignment import Assignment, assign, cheapest, tradeoff
from gossamer.convert.measure import Measurement

CANDIDATES = (Causal() & Sinks(4), Causal() & Window(8), Causal() & Strided(10), Causal())


def measurement(seed: int, *, heads: int = 2, key_heads: tuple[int, ...] = (2, 2)) -> Measurement:
    """Random masses, that of dense attention 1, and random shares in no order."""
    random = np.random.default_rng(seed)
    mass = random.uniform(size=(len(key_heads), heads, len(CANDIDATES)))
    share = random.uniform(0.05, 0.9, size=(len(key_heads), len(CANDIDATES)))
    mass[:, :, -1], share[:, -1] = 1, 1
    return Measurement(CANDIDATES, mass, share, key_heads, 64)


def units(measured: Measurement) -> list[tuple[int, slice]]:
    """(layer, heads) of each key head."""
    heads = measured.mass.shape[1]
    return [
        (layer, slice(first, first + heads // groups))
        for layer, groups in enumerate(measured.key_heads)
        for first in range(0, heads, heads // groups)
    ]


def every_assignment(measured: Measurement) -> list[tuple[float, float]]:
    """(share, kept) of each way to give every key head a candidate."""
    groups, heads, found = units(measured), measured.mass[:, :, 0].size, []
    for choice in product(range(len(CANDIDATES)), repeat=len(groups)):
        share = sum(
            measured.share[layer, index] * (of.stop - of.start)
            for (layer, of), index in zip(groups, choice, strict=True)
        )
        kept = sum(measured.mass[layer, of, index].sum() for (layer, of), index in zip(groups, choice, strict=True))
        found.append((share / heads, kept / heads))
    return found


def best(measured: Measurement, budget: float) -> float:
    return max(kept for share, kept in every_assignment(measured) if share <= budget + 1e-12)


def affordable(measured: Measurement, part: float) -> float:
    least = cheapest(measured.share)
    return min(least + part * (1 - least), 1.0)


SHAPES = [(2, (2, 2)), (4, (2, 1)), (4, (4,)), (3, (1, 1, 1))]


@given(seed=st.integers(0, 2**32 - 1), part=st.floats(0, 1), shape=st.sampled_from(SHAPES))
def test_no_assignment_within_the_budget_keeps_more_than_is_said(
    seed: int, part: float, shape: tuple[int, tuple[int, ...]]
) -> None:
    measured = measurement(seed, heads=shape[0], key_heads=shape[1])
    budget = affordable(measured, part)
    chosen = assign(measured, budget)
    assert chosen.share <= budget + 1e-8
    assert chosen.kept <= best(measured, budget + 1e-8) + 1e-12
    assert best(measured, budget) <= chosen.kept + chosen.behind + 1e-9


@given(seed=st.integers(0, 2**32 - 1), part=st.floats(0, 1))
def test_what_may_be_missed_is_less_than_one_upgrade(seed: int, part: float) -> None:
    measured = measurement(seed)
    gains = [measured.mass[layer, heads].sum(axis=0) for layer, heads in units(measured)]
    largest = max(
        gain.max() - gain[measured.share[layer].argmin()]
        for (layer, _), gain in zip(units(measured), gains, strict=True)
    )
    assert 0 <= assign(measured, affordable(measured, part)).behind * measured.mass[:, :, 0].size < largest


@given(seed=st.integers(0, 2**32 - 1), parts=st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_more_budget_never_keeps_less(seed: int, parts: list[float]) -> None:
    measured = measurement(seed, heads=4, key_heads=(4, 2))
    kept = [assign(measured, affordable(measured, part)).kept for part in sorted(parts)]
    assert all(more >= less - 1e-9 for less, more in pairwise(kept))


@given(seed=st.integers(0, 2**32 - 1), part=st.floats(0, 1))
def test_heads_that_share_a_key_head_get_the_same(seed: int, part: float) -> None:
    measured = measurement(seed, heads=4, key_heads=(2, 1, 4))
    choice = assign(measured, affordable(measured, part)).choice
    assert all(len(set(choice[layer, heads])) == 1 for layer, heads in units(measured))


def test_the_whole_budget_keeps_everything_and_the_least_is_affordable() -> None:
    measured = measurement(0)
    assert assign(measured, 1).kept == pytest.approx(1)
    least = assign(measured, cheapest(measured.share))
    assert (least.choice == measured.share.argmin(axis=1)[:, None]).all()


def test_a_dearer_candidate_that_keeps_no_more_is_never_chosen() -> None:
    mass, share = np.array([[[0.5, 0.4, 0.5, 1.0]]]), np.array([[0.1, 0.2, 0.1, 1.0]])
    measured = Measurement(CANDIDATES, mass, share, (1,), 64)
    assert {assign(measured, budget).choice[0, 0] for budget in np.linspace(0.1, 1, 20)} == {0, 3}


def test_what_an_upgrade_was_too_dear_for_buys_a_cheaper_one() -> None:
    mass = np.array([[[0.1, 0.9, 0.9, 0.9]], [[0.1, 0.2, 0.2, 0.2]]])
    share = np.array([[0.1, 0.7, 0.7, 1.0], [0.1, 0.3, 0.3, 1.0]])
    chosen = assign(Measurement(CANDIDATES, mass, share, (1, 1), 64), 0.25)
    assert chosen.choice.tolist() == [[0], [1]]


def test_patterns_are_in_the_order_of_heads_with_neighbours_merged() -> None:
    share = np.array([[0.1, 0.2, 0.3, 1.0]] * 2)
    choice = np.array([[1, 1, 0, 1], [3, 3, 3, 3]])
    chosen = Assignment(Measurement(CANDIDATES, np.ones((2, 4, 4)), share, (4, 4), 64), 1.0, choice, 0.0)
    sinks, window, *_ = CANDIDATES
    assert chosen.patterns == (PerHead([(window, 2), (sinks, 1), (window, 1)]), Causal())
    assert [parse(pattern.spec) for pattern in chosen.patterns] == list(chosen.patterns)


def test_the_trade_off_leaves_out_what_buys_nothing() -> None:
    measured = measurement(3)
    least = cheapest(measured.share)
    assert [one.budget for one in tradeoff(measured, [least / 2, least, 1.0])] == [least, 1.0]


@pytest.mark.parametrize("budget", [0, -0.5, 1.01, float("nan")])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(ValueError, match=r"budget is .*; give a share of the dense pairs, above 0 and at most 1"):
        assign(measurement(0), budget)


def test_a_budget_below_the_cheapest_names_it() -> None:
    measured = measurement(0)
    with pytest.raises(ValueError, match=f"takes {cheapest(measured.share):.4f} of the dense pairs"):
        assign(measured, cheapest(measured.share) - 1e-3)
