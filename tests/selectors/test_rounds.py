"""Sorted rounds: a permutation in the order of (bucket, position), its inverse, and who lies in whose span."""

from __future__ import annotations

import pytest
import torch

from gossamer.selectors import Chunks, sorted_rounds
from gossamer.selectors.rounds import inverse

CHUNKS = Chunks(size=4, before=1, after=0, edge="stops", causal=True)
BUCKETS = torch.tensor([[[[2, 0, 2, 1, 0, 0, 1, 2, 0]]]])


def test_tokens_are_sorted_by_bucket_and_then_by_position() -> None:
    assert sorted_rounds(BUCKETS, CHUNKS).order.tolist() == [[[[1, 4, 5, 8, 3, 6, 0, 2, 7]]]]


@pytest.mark.parametrize("most", [3, None])
def test_every_round_of_every_head_is_sorted_by_itself(most: int | None) -> None:
    buckets = torch.randint(3, (2, 3, 4, 50))
    order = sorted_rounds(buckets, CHUNKS, most=most).order
    assert torch.equal(order.long(), torch.argsort(buckets, dim=-1, stable=True))


def test_an_order_is_undone_by_its_inverse() -> None:
    order = sorted_rounds(torch.randint(3, (2, 3, 4, 50)), CHUNKS).order
    assert torch.equal(inverse(order).gather(-1, order.long()), torch.arange(50).expand_as(order).int())


def test_tokens_that_do_not_exist_stand_last() -> None:
    within = torch.tensor([[2, 7]], dtype=torch.int32)
    rounds = sorted_rounds(BUCKETS, CHUNKS, most=3, within=within)
    assert rounds.order.tolist() == [[[[4, 5, 3, 6, 2, 0, 1, 7, 8]]]]
    assert rounds.count.tolist() == [5]


def test_spans_reach_as_far_as_the_chunk_before_and_the_own_bucket() -> None:
    rounds = sorted_rounds(BUCKETS, CHUNKS, own_bucket=True, once=True)
    place, start, stop = (x[0, 0, :, 0].tolist() for x in (rounds.place, rounds.start, rounds.stop))
    assert place == [6, 0, 7, 4, 1, 2, 5, 8, 3]
    assert start == [6, 0, 6, 4, 0, 0, 4, 6, 0]
    assert stop == [8, 4, 8, 6, 4, 4, 6, 9, 4]  # token 0 stands in the second chunk, its bucket goes on in the third


def test_without_buckets_of_their_own_spans_are_whole_chunks() -> None:
    rounds = sorted_rounds(BUCKETS, CHUNKS, once=True)
    assert rounds.start[0, 0, :, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 0]
    assert rounds.stop[0, 0, :, 0].tolist() == [8, 4, 8, 8, 4, 4, 8, 9, 4]


def test_numbers_out_of_range_are_refused() -> None:
    for wrong in (BUCKETS - 1, BUCKETS + 1):
        with pytest.raises(RuntimeError, match=r"buckets holds numbers outside 0 \.\.\. 2"):
            sorted_rounds(wrong, CHUNKS, most=3)


def test_no_chunk_is_met_twice() -> None:
    three = Chunks(4, before=1, after=1, edge="wraps", causal=False)
    assert [three.met(length, rounds=2) for length in (4, 8, 9, 100)] == [1, 2, 3, 3]
    assert Chunks(4, 1, 1, "crosses", causal=False).met(4, rounds=2) == 2
