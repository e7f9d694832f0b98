"""Which queries are taken apart because they see every key, and how the keys are shared among copies of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.kernels.spans import spans
from gossamer.patterns import Causal, Documents, Pattern, RandomBlocks, Strided, Tokens, Window, presets
from gossamer.plan import HeadGroup, Plan, Rows, plan
from gossamer.reference import visible

pytest.importorskip("triton", reason="the Hopper backend's modules name Triton's types")

from gossamer.kernels.hopper.configs import team_of
from gossamer.kernels.hopper.passes import joined
from gossamer.kernels.hopper.sweep_forward import SLOTS
from gossamer.kernels.hopper.whole_rows import WholeRows

CPU = torch.device("cpu")


def planned(pattern: Pattern, queries: int, keys: int) -> tuple[HeadGroup, Plan]:
    made = plan(pattern, queries, keys, 1)
    return made.groups[0], made


@st.composite
def patterns_with_rows(draw: st.DrawFn) -> tuple[Pattern, int, int]:
    keys = draw(st.integers(2, 60))
    queries = draw(st.integers(2, keys) | st.integers(2, 60))
    tokens = Tokens(sorted(draw(st.sets(st.integers(0, keys - 1), min_size=1, max_size=6))))
    window = Window(draw(st.integers(1, keys)))
    shapes = [
        window | tokens | tokens.T,
        window | tokens.T,
        Causal() & (window | tokens.T),
        window | tokens.T & Strided(2),
        window | tokens.T & ~Tokens((0,)),
        window | Causal() & tokens.T,
    ]
    return draw(st.sampled_from(shapes)), queries, keys


@settings(max_examples=150)
@given(patterns_with_rows())
def test_rows_are_apart_where_all_of_them_see_every_key(problem: tuple[Pattern, int, int]) -> None:
    pattern, queries, keys = problem
    group, made = planned(*problem)
    asked = sorted({int(row) for term in group.terms if isinstance(term, Rows) for row in term.queries})
    seen = visible(pattern, queries, keys, CPU).reshape(queries, keys)
    found = WholeRows.of(spans(group, made, CPU), queries)
    if asked and seen[asked].all():
        assert found is not None and found.queries.tolist() == asked == found.absent.nonzero()[:, 0].tolist()
    else:
        assert found is None


@pytest.mark.parametrize(
    ("pattern", "apart"),
    [
        (presets.longformer(20, (0, 50)), True),
        (Window(9) | Tokens((5,)).T, True),
        (presets.longformer(20, (0, 50), dilation=2), False),  # its window is no run of the keys as they stand
        (Causal() & Window(9) | Tokens((5,)).T & Documents([60, 40]), False),
        (Tokens((5,)).T, False),  # nothing else sees all keys
        (RandomBlocks(64, 1, 0) & ~Window(3) | Tokens((0, 5)).T, False),
        (Window(9), False),
    ],
    ids=str,
)
def test_a_pass_of_all_keys_takes_their_part_of_the_gradients(pattern: Pattern, apart: bool) -> None:
    group, made = planned(pattern, 100, 100)
    found = joined(group, made, CPU, apart=True)
    assert (found.whole is not None) == apart
    rows = [span for each in found.passes for span in each.spans if isinstance(span.term, Rows)]
    assert not (apart and rows)
    assert joined(group, made, CPU, apart=False).whole is None


def test_longformer_is_one_pass_and_its_whole_rows() -> None:
    group, made = planned(presets.longformer(20, (0, 50)), 100, 100)
    (one,) = joined(group, made, CPU, apart=True).passes
    assert one.queries is None and len(one.spans) == 2 and one.diagonals[0] is not None


@pytest.mark.parametrize("widths", SLOTS)
def test_a_ring_holds_the_turns_before_and_after_a_tile(widths: tuple[int, int]) -> None:
    assert SLOTS[widths] > 2 * team_of(*widths).consumers


@pytest.mark.parametrize("keys", [1, 63, 64, 65, 424, 5000])
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize(("wanted", "length"), [(1, 64), (64, 64), (1, 192), (64, 192), (65, 192), (70, 128)])
def test_every_copy_sees_its_share_and_all_see_every_key_once(keys: int, count: int, wanted: int, length: int) -> None:
    queries = torch.arange(wanted) * 3
    shares = WholeRows(queries, queries == 0, keys)._made(count, length, 1)
    assert shares.start.diff().min() >= 0 and shares.stop.diff().min() >= 0 and (shares.start <= shares.stop).all()
    start, stop, rows = (x.view(count, length) for x in (shares.start, shares.stop, shares.queries))
    assert torch.equal(rows[:, :wanted], queries.expand(count, -1))
    assert start[0, 0] == 0 and stop[-1, 0] == keys and torch.equal(start[1:, 0], stop[:-1, 0])
    used = 64 * -(-wanted // 64)
    assert (start[:, :used] == start[:, :1]).all() and (stop == stop[:, :1]).all()
    assert (start[:, used:] == stop[:, used:]).all(), "a tile of padding sees something"
