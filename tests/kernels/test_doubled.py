"""Columns around a window as one run: the very pairs that they were, each once, and runs that never fall back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels.spans import Span, spans
from gossamer.patterns import Causal, Documents, Pattern, Strided, Tokens, Window, presets
from gossamer.plan import Columns, plan
from gossamer.reference import visible

pytest.importorskip("triton", reason="the Hopper backend's modules name Triton's types")

from gossamer.kernels.hopper.doubled import DoubledSpan, distinct, doubled

CPU = torch.device("cpu")


def found_in(pattern: Pattern, queries: int, keys: int) -> tuple[Span, ...]:
    made = plan(pattern, queries, keys, 1)
    return spans(made.groups[0], made, CPU)


def times_seen(found: tuple[Span, ...], queries: int, keys: int) -> Tensor:
    """int64 [queries, keys], how often the spans show each pair."""
    times = torch.zeros(queries, keys, dtype=torch.int64)
    for span in found:
        rows = torch.arange(queries) if span.queries is None else span.queries
        order = torch.arange(keys) if span.keys is None else span.keys
        assert (span.start.diff() >= 0).all() and (span.stop.diff() >= 0).all(), "an end falls"
        for row, start, stop in zip(rows.tolist(), span.start.tolist(), span.stop.tolist(), strict=True):
            times[row].index_add_(0, order[start:stop], torch.ones(max(stop - start, 0), dtype=torch.int64))
    return times


def columns_of(found: tuple[Span, ...]) -> list[Span]:
    return [span for span in found if isinstance(span.term, Columns)]


@st.composite
def windows_with_tokens(draw: st.DrawFn) -> tuple[Pattern, int, int]:
    keys = draw(st.integers(2, 70))
    queries = draw(st.integers(2, keys) | st.integers(2, 70))
    tokens = draw(st.sets(st.integers(0, keys - 1), min_size=1, max_size=12) | st.just({0, keys - 1}))
    window = presets.longformer(2 * draw(st.integers(0, keys)), tuple(sorted(tokens)))
    one_sided = Causal() & window
    return draw(st.sampled_from([window, one_sided, window | Strided(5)])), queries, keys


@settings(max_examples=150)
@given(windows_with_tokens())
def test_every_pair_is_seen_once(problem: tuple[Pattern, int, int]) -> None:
    pattern, queries, keys = problem
    found = doubled(found_in(*problem))
    right = visible(pattern, queries, keys, CPU).reshape(queries, keys)
    assert torch.equal(times_seen(found, queries, keys), right.long())


@pytest.mark.parametrize("tokens", [(0,), (99,), (0, 99), (40, 41, 42), tuple(range(0, 100, 7))])
@pytest.mark.parametrize("queries", [100, 60])
def test_both_sides_are_one_span(tokens: tuple[int, ...], queries: int) -> None:
    before = found_in(Window(9) | Tokens(tokens), queries, 100)
    (one,) = columns_of(doubled(before))
    assert len(columns_of(before)) in (1, 2) and isinstance(one, DoubledSpan) == (len(columns_of(before)) == 2)
    if isinstance(one, DoubledSpan):
        assert distinct(one).tolist() == list(tokens) and one.key_count == 2 * len(tokens)
        outside = torch.ones(100, dtype=torch.bool)
        outside[list(tokens)] = False
        assert one.outside is None if not outside.any() else torch.equal(one.outside, outside)


def test_keys_are_seen_by_the_queries_that_see_them() -> None:
    (one,) = columns_of(doubled(found_in(Window(9) | Tokens((3, 50, 51, 98)), 100, 100)))
    first, last = one.seen_by
    place = torch.arange(one.key_count)
    sees = (place >= one.start[:, None]) & (place < one.stop[:, None])
    query = torch.arange(100)[:, None]
    assert torch.equal(sees, (query >= first) & (query < last))


@pytest.mark.parametrize(
    "pattern",
    [
        Causal() & (Window(9) | Tokens((3, 50))),
        (Window(9) | Tokens((3, 50))) & Documents([40, 60]),
        Window(9) | Causal() & Tokens((3, 50)) | ~Causal() & Tokens((3, 51)) & ~Window(30),
        Window(9),
    ],
    ids=["one side", "packed", "other keys", "no columns"],
)
def test_what_is_no_run_of_a_list_stays_as_it_is(pattern: Pattern) -> None:
    found = found_in(pattern, 100, 100)
    assert doubled(found) == found
