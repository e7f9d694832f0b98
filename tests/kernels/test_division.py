"""Kernels divide by multiplication, exactly, and so give every item of their work to one program and turn.

Their functions run here as Python, on whole numbers that know how wide they are.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="kernels divide so, and are written for Triton")

from gossamer.kernels.hopper import sweep
from gossamer.kernels.hopper.division import DIVIDENDS, Divisor, divisor, quotient
from gossamer.kernels.hopper.sweep import Work, work_of

LARGEST = 2**DIVIDENDS - 1


class Word(int):
    """A number as a kernel holds it: whatever it is cast to keeps its lower bits."""

    def to(self, kind: Any) -> Word:
        bits = kind.primitive_bitwidth
        rest = int(self) % 2**bits
        return Word(rest - 2**bits if kind.is_int_signed() and rest >= 2 ** (bits - 1) else rest)

    def __mul__(self, other: int) -> Word:
        return Word(int(self) * int(other) % 2**64)

    def __rshift__(self, other: int) -> Word:
        return Word(int(self) >> int(other))


def divided(n: int, by: Divisor) -> Word:
    return quotient.fn(Word(n), Divisor(*map(Word, by)))


@pytest.mark.parametrize("value", [*range(1, 300), 2**15 - 1, 2**20 + 1, 2**30 - 1, 2**30, 2**30 + 1, LARGEST])
def test_quotients_are_exact(value: int) -> None:
    by, most = Divisor(*divisor(value)), LARGEST // value
    assert by.value == value
    for times in {*range(min(most, 50) + 1), most // 3, most // 2, most - 1, most}:
        for n in (times * value - 1, times * value, times * value + 1):
            if 0 <= n <= LARGEST:
                assert divided(n, by) == n // value, (n, value)


def test_a_reciprocal_keeps_its_type() -> None:
    """Triton compiles a kernel anew for a number of 32 bits."""
    assert all(2**32 < divisor(value)[1] < 2**63 for value in (1, 2, 3, LARGEST))


def chosen(condition: bool, a: int, b: int) -> int:
    return a if condition else b


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize(("units", "blocks", "cached"), [(48, 5, 6), (13, 3, 6), (7, 4, 9), (5, 1, 1), (1, 40, 3)])
def test_items_are_the_blocks_of_all_units(
    units: int, blocks: int, cached: int, in_turn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once; a section's units come before the next one's, of which the last may be smaller; or all reversed."""
    items, count, *rest = work_of(units, blocks, cached)
    work = Work(items, count, *(Divisor(*rest[at : at + 2]) for at in (0, 2, 4)))
    monkeypatch.setattr(sweep, "quotient", divided)
    monkeypatch.setattr(sweep, "gl", SimpleNamespace(where=chosen))
    monkeypatch.setattr(sweep, "_item", lambda turn: turn)
    monkeypatch.setattr(sweep, "placed", sweep.placed.fn)
    config = SimpleNamespace(in_turn=in_turn)
    seen = [sweep.unit_and_block.fn(item, work, config) for item in range(items)]
    assert Counter(seen) == Counter((unit, block) for unit in range(units) for block in range(blocks))
    in_order = seen[::-1] if in_turn else seen
    assert all(unit // cached == item // (cached * blocks) for item, (unit, _) in enumerate(in_order))


@pytest.mark.parametrize("programs", [1, 7, 132])
@pytest.mark.parametrize("items", [1, 7, 131, 132, 133, 1000])
def test_every_item_is_one_programs(items: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[int] = Counter()
    for program in range(programs):
        here = SimpleNamespace(program_id=lambda _, at=program: at, num_programs=lambda _: programs, where=chosen)
        monkeypatch.setattr(sweep, "gl", here)
        turns = [sweep._item.fn(turn) for turn in range(-(-items // programs))]
        taken.update(item for item in turns if item < items)
        assert all(item < items for item in turns[:-1]), "only a program's last turn may be without an item"
    assert taken == Counter(range(items))
