"""Rows of a choice in their one order, and for each key who chose it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from gossamer.kernels.inverse_lists import Rows, canonical, inverse_lists
from gossamer.selectors.selection import Selection
from tests.indexed_checks import CASES, Case, dense_mask, draw

LARGE = {
    "blocks of sixteen": Case(block=16, keys=150, chosen=4, queries=20),
    "blocks of sixteen, causal": Case(block=16, keys=150, chosen=6, queries=120, causal=True, runs=2),
    "blocks under a mask": Case(block=16, keys=150, chosen=4, queries=20, mask=True),
}
EVERY = CASES | LARGE


def canonical_of(case: Case) -> tuple[Selection, Rows]:
    selection = draw(case).selection
    return selection, canonical(selection, case.keys)


@pytest.mark.parametrize("name", EVERY)
def test_rows_ascend_and_hold_what_is_visible_once(name: str) -> None:
    case = EVERY[name]
    selection, rows = canonical_of(case)
    assert rows.block == (case.block if case.block >= 16 and not case.mask else 1)
    seen = dense_mask(selection, case.keys)
    blocks = torch.nn.functional.pad(seen, (0, -case.keys % rows.block)).unflatten(-1, (-1, rows.block)).any(-1)
    for place in torch.cartesian_prod(*map(torch.arange, rows.counts.shape)):
        at = tuple(place.tolist())
        wanted = blocks[at].nonzero().flatten().tolist()
        assert rows.indices[at].tolist() == wanted + [-1] * (rows.size - len(wanted))
        assert rows.counts[at] == len(wanted)
    assert rows.indices.dtype == rows.counts.dtype == torch.int32
    assert rows.indices.is_contiguous() and rows.counts.is_contiguous()


@pytest.mark.parametrize("part", [(0, None), (3, 9), (5, 6)], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_a_list_names_the_entries_of_its_key_in_the_order_of_queries(name: str, part: tuple[int, int | None]) -> None:
    first, last = part
    rows = canonical_of(EVERY[name])[1]
    lists = inverse_lists(rows, EVERY[name].keys, first, last)
    some = rows.indices[:, :, first:last]
    assert lists.starts.shape == (*some.shape[:2], rows.places(EVERY[name].keys) + 1)
    for batch in range(some.shape[0]):
        for run in range(some.shape[1]):
            flat = some[batch, run].flatten()
            starts, entries = lists.starts[batch, run].tolist(), lists.entries[batch, run]
            for number, (begin, end) in enumerate(pairwise(starts)):
                assert entries[begin:end].tolist() == (flat == number).nonzero().flatten().tolist()
            assert starts[0] == 0 and starts[-1] == (flat >= 0).sum()
    assert lists.starts.dtype == lists.entries.dtype == torch.int32


def test_a_key_that_is_named_twice_has_one_entry() -> None:
    """Of the same query; of two queries it has two."""
    rows = canonical(Selection(torch.tensor([[[4, 4, 2], [4, -1, 9]]])), 6)
    assert rows.indices.tolist() == [[[[2, 4, -1], [4, -1, -1]]]]
    lists = inverse_lists(rows, 6)
    assert lists.starts.tolist() == [[[0, 0, 0, 1, 1, 3, 3]]]
    assert lists.entries[0, 0, :3].tolist() == [0, 1, 3]


def test_rows_that_are_in_order_stay_as_they_are() -> None:
    selection = draw(replace(CASES["tidy"], causal=False)).selection
    assert torch.equal(canonical(selection, 700).indices, selection.indices)
