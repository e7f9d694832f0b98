"""Decoding: right for every regular pattern and length, and planned once for many lengths."""

from __future__ import annotations

import pytest
import torch

from gossamer.kernels import Problem
from gossamer.kernels.triton.decode_table import at_capacity, padded, programs, refuses, tile_of
from gossamer.patterns import Blocks, Causal, Dilated, Documents, Pattern, PerHead, RandomBlocks, Strided, Window
from gossamer.plan import plan
from tests.kernels.decode_in_interpreter import CASES, bound
from tests.kernels.interpreter import interpreted

pytest.importorskip("triton")

PATTERN = Causal() & (Window(512) | Strided(100))


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    found, _ = interpreted("decode_in_interpreter")
    return found


@pytest.mark.parametrize("name", [*CASES, "transposed"])
def test_decoding_is_right(name: str, errors: dict[str, float]) -> None:
    assert errors[name] < bound(CASES.get(name, CASES["all keys"]))


def problem(pattern: Pattern = PATTERN, queries: int = 1, **changed: object) -> Problem:
    settings = {
        "plan": plan(pattern, queries, 4096, 8), "device": torch.device("cpu"), "dtype": torch.bfloat16, "batch": 2,
        "key_heads": 2, "width": 64, "value_width": 64, "softcap": 0.0, "dropout": 0.0, "has_sinks": False,
    }  # fmt: skip
    return Problem(**(settings | changed))


def test_what_it_does_not_do_it_says() -> None:
    assert refuses(problem()) is None
    assert refuses(problem(queries=17)) == "there are 17 queries; it decodes 16 at most"
    assert refuses(problem(dtype=torch.float64)).startswith("inputs are torch.float64; it computes float32, bfloat16")
    assert refuses(problem(width=264)) == "heads are 264 and 64 wide; it computes 256 at most"
    assert refuses(problem(dropout=0.1)) == "decoding has no dropout"
    assert refuses(problem(backward=True)) == "decoding has no gradients"
    assert refuses(problem(Causal() & RandomBlocks(16, 1, 0))) == "decoding has no blocks"
    later = plan(Causal() & Blocks(1024, ["0000", "0000", "0000", "0001"]), 1, 2500, 8)  # none that this query sees
    assert refuses(problem(plan=later)) == "decoding has no blocks"


CPU, TILE = torch.device("cpu"), tile_of(64, 64, 2)


def test_tables_are_made_once_until_the_capacity_doubles() -> None:
    plans = [at_capacity(plan(PATTERN, 1, keys, 8)) for keys in (1025, 1500, 2048)]
    assert len({programs(made, CPU, 2, 4, 1, TILE) for made in plans}) == 1


def test_a_small_batch_is_cut_finer() -> None:
    """Down to one tile a program, and up to all of a head's keys."""
    made = at_capacity(plan(PATTERN, 1, 4096, 8))
    tables = [programs(made, CPU, batch, 4, 1, TILE) for batch in (1, 4, 16, 64)]
    assert [table.splits for table in tables] == [9, 3, 2, 1]  # 512 + 41 keys are 9 tiles of 64
    assert [len(table.items) for table in tables] == [18, 6, 4, 2]


def test_heads_with_more_keys_are_cut_finer() -> None:
    pattern = PerHead([(Causal() & Window(64), 4), (Causal() & Strided(2), 4)])
    table = programs(at_capacity(plan(pattern, 1, 4096, 8)), CPU, 1, 2, 1, TILE)
    assert table.head_splits.tolist() == [1, 1, 1, 1, 11, 11, 11, 11]


def test_neighbouring_queries_share_a_tile_where_their_keys_are_one_run() -> None:
    for pattern, together in ((PATTERN, 5), (Causal() & Dilated(9, 4), 1), (PATTERN & Documents([999, 5000]), 1)):
        assert programs(at_capacity(plan(pattern, 5, 4096, 8)), CPU, 2, 4, 5, TILE).queries == together


@pytest.mark.parametrize("size", [(8, 8, 2), (64, 64, 2), (128, 128, 2), (256, 256, 2), (72, 40, 4), (256, 256, 4)])
def test_tiles_fit_a_multiprocessor_three_times(size: tuple[int, int, int]) -> None:
    width, value_width, element_size = size
    tile = tile_of(*size)
    assert tile.keys & (tile.keys - 1) == 0 and tile.keys >= 16
    assert (tile.stages - 1) * tile.keys * (padded(width) + padded(value_width)) * element_size <= 2**16


def test_documents_that_end_where_no_int32_reaches_are_cut_to_the_capacity() -> None:
    made = plan(Causal() & Documents([50, 2**50]), 1, 100, 1)
    found = programs(made, torch.device("cpu"), 1, 1, 1, tile_of(64, 64, 4))
    assert found.lists.max() < 128 and found.lists.min() >= -1
