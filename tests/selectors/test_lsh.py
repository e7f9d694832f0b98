"""LSH as a value: what its conventions are, what it refuses, and what it hashes to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gossamer.selectors import LSH
from gossamer.selectors.lsh import MOST_COLUMNS
from tests.hashed_checks import check_hash


def test_the_conventions_differ_where_they_are_said_to() -> None:
    paper, trax, lucidrains = LSH.paper(2, 16), LSH.trax(2, 16), LSH.lucidrains(2, 16)
    assert not paper.other_buckets and not paper.repeats and paper.edge == "stops" and paper.scale == 1.0
    assert replace(paper, other_buckets=True, repeats=True, edge="crosses") == trax
    assert replace(trax, scale=None, epsilon=1e-12, buckets_per_chunk=1, powers_of_two=False) == lucidrains
    assert [lsh.most(1024) for lsh in (paper, trax, lucidrains)] == [128, 128, 64]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 0}, "LSH: rounds is 0; give an integer of at least 1"),
        ({"chunk": 2.5}, "LSH: chunk is 2.5; give an integer of at least 1"),
        ({"before": -1}, "LSH: before is -1; give an integer of at least 0"),
        ({"buckets": 7}, "LSH: buckets is 7; give 1 or an even number, a list of them, or None"),
        ({"buckets": (4, 0)}, r"LSH: buckets is \(4, 0\); give 1 or an even number, a list"),
        ({"buckets": ()}, r"LSH: buckets is \(\); give 1 or an even number, a list"),
        ({"buckets": True}, "LSH: buckets is True; give 1 or an even number, a list"),
        ({"buckets": "64"}, "LSH: buckets is '64'; give 1 or an even number, a list"),
        ({"causal": "no"}, "LSH: causal is 'no'; give True or False"),
        ({"repeats": 1}, "LSH: repeats is 1; give True or False"),
        ({"powers_of_two": 1}, "LSH: powers_of_two is 1; give True or False"),
        ({"other_buckets": None}, "LSH: other_buckets is None; give True or False"),
        ({"scale": "x"}, r"LSH: scale is 'x'; give a finite number, or None for width\^-1/2"),
        ({"scale": float("nan")}, "LSH: scale is nan; give a finite number"),
        ({"epsilon": -1}, "LSH: epsilon is -1; give a finite number above 0"),
        ({"epsilon": 0.0}, "LSH: epsilon is 0.0; give a finite number above 0"),
        ({"epsilon": "small"}, "LSH: epsilon is 'small'; give a finite number above 0"),
        ({"edge": "circle"}, "LSH: edge is 'circle'; give one of stops, wraps, crosses"),
        ({"edge": "wraps"}, "LSH: edge is 'wraps', but tokens of other buckets.*give edge='stops'"),
        ({"edge": "crosses", "other_buckets": True}, "LSH: edge is 'crosses', but"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LSH(**({"rounds": 2, "chunk": 16} | settings))


def test_lists_of_buckets_become_tuples() -> None:
    assert LSH(2, 16, [4, 8]) == LSH(2, 16, (4, 8)) and hash(LSH(2, 16, [4, 8])) is not None


def test_the_hash_is_the_nearest_of_the_rotated_axes() -> None:
    x, lsh = torch.randn(2, 3, 40, 8), LSH.paper(2, 8, 6)
    rotations = lsh.rotations(3, 8, 40)
    assert rotations.shape == (3, 8, 2, 3)
    rotated = torch.einsum("bhnd,hdrf->bhrnf", x, rotations)
    assert torch.equal(lsh.hash(x, rotations), torch.cat([rotated, -rotated], -1).argmax(-1))


def test_the_first_of_equal_ones_is_taken() -> None:
    rotations = torch.tensor([[1.0, -1.0, 1.0]]).view(1, 1, 1, 3)
    assert LSH.paper(1, 8, 6).hash(torch.tensor([[[[2.0], [-2.0]]]]), rotations).tolist() == [[[[0, 1]]]]


def test_factors_make_one_number_the_first_counting_ones() -> None:
    x, lsh = torch.randn(1, 2, 30, 8), LSH.paper(3, 8, (4, 6))
    rotations = lsh.rotations(2, 8, 30)
    ones = replace(lsh, buckets=4).hash(x, rotations[..., :2])
    fours = replace(lsh, buckets=6).hash(x, rotations[..., 2:])
    assert torch.equal(lsh.hash(x, rotations), ones + 4 * fours)
    assert lsh.most(30) == 24


def test_one_bucket_holds_all() -> None:
    lsh = LSH.paper(2, 8, 1)
    assert not lsh.hash(torch.randn(1, 1, 9, 4), lsh.rotations(1, 4, 9)).any()


def test_vectors_that_point_the_same_way_share_their_bucket_whatever_their_length() -> None:
    x, lsh = torch.randn(1, 1, 20, 8), LSH.paper(4, 8, 16)
    rotations = lsh.rotations(1, 8, 20)
    assert torch.equal(lsh.hash(x, rotations), lsh.hash(x * torch.rand(20, 1).add(0.1), rotations))
    assert not torch.equal(lsh.hash(x, rotations), lsh.hash(x.roll(1, 2), rotations))


def test_draws_repeat_with_their_generator() -> None:
    lsh = LSH.paper(2, 8, 6)
    once, again = (lsh.rotations(2, 4, 9, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(once, again) and not torch.equal(once, lsh.rotations(2, 4, 9))


def test_keys_are_of_length_one() -> None:
    keys = LSH.paper(1, 8).keys(torch.randn(3, 16, dtype=torch.float64) * 50)
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(3, dtype=torch.float64), rtol=1e-7, atol=0)
    assert LSH.lucidrains(1, 8).keys(torch.zeros(2, 4)).eq(0).all()


def test_what_needs_no_hashing_is_known() -> None:
    assert LSH.trax(2, 16).is_full(16) and not LSH.trax(2, 16).is_full(17)
    assert LSH.paper(2, 16, 1).is_full(16) and not LSH.paper(2, 16, 4).is_full(16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_operator_hashes_to_the_axis_that_reaches_furthest(dtype: torch.dtype) -> None:
    check_hash((4, 6), dtype)


def test_a_hash_may_have_more_buckets_than_columns_that_are_made_at_a_time() -> None:
    check_hash((2 * MOST_COLUMNS + 88, 1), torch.float32)
