"""Which pattern each head gets, so that the kept mass is as large as a budget of pairs allows."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from ..patterns import Pattern, PerHead
from .measure import Measurement

ROUNDING = 1e-9  # a budget that is a share itself, computed in another order, still affords it


@dataclass(frozen=True, eq=False)
class Assignment:
    """One candidate for each head of each layer.

    Args:
        budget: The share of causal attention's pairs that was allowed.
        choice: The number of the chosen candidate.
        behind: No assignment within the budget keeps a larger share of the mass than `kept + behind`.
    """

    measured: Measurement
    budget: float
    choice: NDArray[np.int64]  # [L, H]
    behind: float

    @property
    def mass(self) -> NDArray[np.float64]:
        """[L, H], the share of its dense attention that each head keeps."""
        return np.take_along_axis(self.measured.mass, self.choice[:, :, None], axis=2)[:, :, 0]

    @property
    def shares(self) -> NDArray[np.float64]:
        """[L, H], the share of causal attention's pairs that each head computes."""
        return np.take_along_axis(self.measured.share, self.choice, axis=1)

    @property
    def kept(self) -> float:
        """The kept mass of the average head."""
        return float(self.mass.mean())

    @property
    def share(self) -> float:
        """The share of pairs of the average head."""
        return float(self.shares.mean())

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """The pattern of each layer: heads in order, neighbours with the same candidate in one group."""
        return tuple(_pattern([self.measured.candidates[index] for index in layer]) for layer in self.choice)


def assign(measured: Measurement, budget: float) -> Assignment:
    """The assignment that keeps the most mass, or nearly so, while the average head computes at most `budget`.

    Heads that share a key head get the same candidate. Every head starts at its cheapest candidate; then the
    upgrade that gains the most mass per pair is bought, again and again, along each head's convex hull. A head
    whose next upgrade is too dear stays where it is. So the kept mass never falls as the budget grows, and
    only the pairs left over at the first upgrade that was too dear can be missed: `behind` says how much
    mass that is at most, which is always less than that one upgrade, and 0 where none was too dear.

    Args:
        budget: A share of the pairs of causal attention, above 0 and at most 1.

    Raises:
        ValueError: The budget is no such share, or is below the cheapest assignment.
    """
    require_budget(measured.share, budget)
    units = tuple(_units(measured))
    heads = measured.mass.shape[0] * measured.mass.shape[1]
    steps, behind = _bought(units, budget * heads + ROUNDING)
    choice = np.zeros(measured.mass.shape[:2], np.int64)
    for unit, step in zip(units, steps, strict=True):
        choice[unit.layer, unit.heads] = unit.path[step]
    return Assignment(measured, budget, choice, behind / heads)


def tradeoff(measured: Measurement, budgets: Iterable[float]) -> tuple[Assignment, ...]:
    """The assignment at each budget that affords one."""
    least = cheapest(measured.share)
    return tuple(assign(measured, budget) for budget in budgets if budget >= least - ROUNDING)


def cheapest(share: NDArray[np.float64]) -> float:
    """The least share of pairs that the average head can compute, from the candidates' shares [L, C]."""
    return float(share.min(axis=1).mean())


def require_budget(share: NDArray[np.float64], budget: float) -> None:
    """The budget is a share that affords each head its cheapest candidate.

    Raises:
        ValueError: It is not; the message says what the least one is.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget is {budget!r}; give a share of the dense pairs, above 0 and at most 1")
    least = cheapest(share)
    if budget < least - ROUNDING:
        raise ValueError(
            f"budget is {budget!r}, but the cheapest candidate of every head takes {least:.4f} of the dense pairs; "
            "give at least that, or a cheaper candidate"
        )


def _bought(units: Sequence[_Unit], limit: float) -> tuple[list[int], float]:
    """How far each unit goes along its path, and how much mass the best choice can keep beyond that."""
    steps = [0] * len(units)
    spent = sum(unit.costs[unit.path[0]] for unit in units)
    missed, gained = None, 0.0
    waiting = [unit.upgrade(0, number) for number, unit in enumerate(units) if len(unit.path) > 1]
    heapq.heapify(waiting)
    while waiting:
        slope, number, gain, cost = heapq.heappop(waiting)
        if spent + cost > limit:
            if missed is None:  # with parts of upgrades allowed, this part of this one would be the best of all
                missed = -slope * (limit - spent)
            continue
        steps[number] += 1
        spent += cost
        gained += 0.0 if missed is None else gain
        if steps[number] + 1 < len(units[number].path):
            heapq.heappush(waiting, units[number].upgrade(steps[number], number))
    return steps, 0.0 if missed is None else max(missed - gained, 0.0)


@dataclass(frozen=True, eq=False)
class _Unit:
    """Heads that share a key head: what each candidate costs and keeps for them, and the ones worth choosing."""

    layer: int
    heads: slice
    costs: NDArray[np.float64]
    gains: NDArray[np.float64]
    path: list[int]

    def upgrade(self, step: int, number: int) -> tuple[float, int, float, float]:
        """(minus the mass per pair, the unit's number, mass, pairs) of going on from a step of the path."""
        here, there = self.path[step], self.path[step + 1]
        gain, cost = self.gains[there] - self.gains[here], self.costs[there] - self.costs[here]
        return -gain / cost, number, gain, cost


def _units(measured: Measurement) -> Iterator[_Unit]:
    heads = measured.mass.shape[1]
    for layer, key_heads in enumerate(measured.key_heads):
        size = heads // key_heads
        for first in range(0, heads, size):
            group = slice(first, first + size)
            costs, gains = measured.share[layer] * size, measured.mass[layer, group].sum(axis=0)
            yield _Unit(layer, group, costs, gains, _hull(costs, gains))


def _hull(costs: NDArray[np.float64], gains: NDArray[np.float64]) -> list[int]:
    """The candidates on the upper convex hull, from the cheapest on: each keeps more, per pair less and less."""
    path: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i], i)):
        if path and gains[index] <= gains[path[-1]]:
            continue  # costs as much or more, and keeps no more
        while len(path) > 1 and _is_below(path[-2], path[-1], index, costs, gains):
            path.pop()
        path.append(index)
    return path


def _is_below(a: int, b: int, c: int, costs: NDArray[np.float64], gains: NDArray[np.float64]) -> bool:
    """Whether b lies under the line from a to c."""
    return (gains[b] - gains[a]) * (costs[c] - costs[a]) < (gains[c] - gains[a]) * (costs[b] - costs[a])


def _pattern(heads: list[Pattern]) -> Pattern:
    groups = [(pattern, len(list(run))) for pattern, run in groupby(heads)]
    return groups[0][0] if len(groups) == 1 else PerHead(groups)
