"""Spans are the plan's pairs, no more and no fewer, seen from the queries and from the keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gossamer.kernels.spans import Span, spans, without_span
from gossamer.patterns import Blocks, Causal, Dilated, Window
from gossamer.plan import Plan, plan
from tests.patterns_list import HEADS, PATTERNS

CPU = torch.device("cpu")
LENGTHS = [(136, 136), (50, 136), (136, 50), (1, 136), (0, 5), (5, 0), (7, 7)]
REGULAR = [name for name in PATTERNS if without_span(plan(PATTERNS[name], 136, 136, HEADS[name])) is None]


def pairs(span: Span, made: Plan) -> np.ndarray:
    """[Q, K] how often the span holds each pair, read from its queries' side."""
    queries = np.arange(made.queries) if span.queries is None else span.queries.numpy()
    keys = np.arange(made.keys) if span.keys is None else span.keys.numpy()
    counted = np.zeros((made.queries, made.keys), dtype=int)
    for query, start, stop in zip(queries, span.start.numpy(), span.stop.numpy(), strict=True):
        counted[query, keys[start:stop]] += 1
    return counted


def pairs_of_keys(span: Span, made: Plan) -> np.ndarray:
    """The same, read from the keys' side."""
    queries = np.arange(made.queries) if span.queries is None else span.queries.numpy()
    keys = np.arange(made.keys) if span.keys is None else span.keys.numpy()
    counted = np.zeros((made.queries, made.keys), dtype=int)
    for key, first, last in zip(keys, *(x.numpy() for x in span.seen_by), strict=True):
        counted[queries[first:last], key] += 1
    return counted


@pytest.mark.parametrize("name", REGULAR)
def test_spans_hold_each_visible_pair_once(name: str) -> None:
    for queries, keys in LENGTHS:
        made = plan(PATTERNS[name], queries, keys, HEADS[name])
        positions = np.arange(queries) + keys - queries
        for group in made.groups:
            found = sum((pairs(span, made) for span in spans(group, made, CPU)), np.zeros((queries, keys), dtype=int))
            right = group.pattern.allows(positions[:, None], np.arange(keys)[None])
            np.testing.assert_array_equal(found, np.broadcast_to(right, found.shape), err_msg=f"{queries} × {keys}")


@pytest.mark.parametrize("name", REGULAR)
def test_both_sides_see_the_same_pairs_and_runs_never_move_back(name: str) -> None:
    for queries, keys in LENGTHS:
        made = plan(PATTERNS[name], queries, keys, HEADS[name])
        for span in (span for group in made.groups for span in spans(group, made, CPU)):
            np.testing.assert_array_equal(pairs(span, made), pairs_of_keys(span, made))
            for end in (span.start, span.stop, *span.seen_by):
                assert (end.diff() >= 0).all()


@pytest.mark.parametrize("name", REGULAR)
def test_keys_are_in_the_order_or_outside_of_it(name: str) -> None:
    for queries, keys in LENGTHS:
        made = plan(PATTERNS[name], queries, keys, HEADS[name])
        for span in (span for group in made.groups for span in spans(group, made, CPU)):
            ordered = torch.arange(keys) if span.keys is None else span.keys
            outside = ordered[:0] if span.outside is None else span.outside.nonzero()[:, 0]
            assert torch.cat([ordered, outside]).sort().values.tolist() == list(range(keys))
            assert span.outside is None or len(outside)


def test_most_patterns_have_spans() -> None:
    assert len(REGULAR) > 20


@pytest.mark.parametrize(
    ("pattern", "word"),
    [(Blocks(32, ((1, 0), (1, 1))), "Blocks"), (Causal() & Window(50) & ~Dilated(20, step=3), "Columns")],
)
def test_a_plan_without_spans_names_the_term(pattern: object, word: str) -> None:
    assert word in (without_span(plan(pattern, 64, 64, 2)) or "")


def test_spans_are_kept() -> None:
    made = plan(Causal() & Window(9), 33, 33, 2)
    assert spans(made.groups[0], made, CPU) is spans(made.groups[0], made, CPU)
