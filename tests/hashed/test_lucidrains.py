"""`LSH.lucidrains` is the convention of reformer-pytorch, written here a second time and chunk by chunk."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.hashed import attend_hashed, draw_buckets
from gossamer.nn import LSHAttention
from gossamer.selectors import LSH


def attention_in_chunks(x: Tensor, v: Tensor, rotations: Tensor, *, size: int, causal: bool) -> Tensor:
    """One head [N, D] by rotations [D, R, F]: as many buckets as chunks of `size`, each of one rotation.

    All rounds are sorted and cut as one row of chunks, each of which sees itself and the one before, the first the
    last.
    """
    length, rounds, count = x.shape[0], rotations.shape[1], x.shape[0] // size
    assert length == count * size and count == 2 * rotations.shape[2]
    rotated = torch.einsum("nd,drf->rnf", x.detach(), rotations)
    bucket = torch.cat([rotated, -rotated], -1).argmax(-1) + count * torch.arange(rounds)[:, None]  # [R, N]
    order = torch.argsort((bucket * length + torch.arange(length)).flatten())
    token = (order % length).view(rounds * count, size)
    seen = torch.cat([token.roll(1, 0), token], 1)  # [chunks, 2 · size]
    score = torch.einsum("cid,cjd->cij", x[token], F.normalize(x, dim=-1)[seen]) * x.shape[1] ** -0.5
    if causal:
        score = score.masked_fill(seen[:, None] > token[:, :, None], -torch.inf)
    score = score.masked_fill(seen[:, None] == token[:, :, None], -5e4)
    of_chunk = torch.cat([score.softmax(-1) @ v[seen], score.logsumexp(-1, keepdim=True)], -1).flatten(0, 1)
    of_round = torch.zeros_like(of_chunk).index_copy(0, order, of_chunk).view(rounds, length, -1)
    return (of_round[..., -1].softmax(0)[..., None] * of_round[..., :-1]).sum(0)


def with_gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return out, *torch.autograd.grad(out.square().sum(), inputs)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize(("length", "rounds"), [(16, 2), (48, 1), (96, 3), (112, 2), (336, 2)])
def test_it_is_attention_in_chunks_by_the_same_rotations(length: int, rounds: int, causal: bool) -> None:
    heads, width, lsh = 2, 6, LSH.lucidrains(rounds, 8, causal=causal)
    x, v = (torch.randn(1, heads, length, width, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rotations = lsh.rotations(heads, width, length, dtype=torch.float64)
    found = with_gradients(attend_hashed(x, v, lsh.hash(x, rotations), lsh), x, v)
    each = zip(x[0], v[0], rotations, strict=True)
    right = torch.stack([attention_in_chunks(*head, size=8, causal=causal) for head in each])[None]
    torch.testing.assert_close(found, with_gradients(right, x, v), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("length", "count"), [(16, 2), (48, 6), (336, 42), (12800, 1600)])
def test_there_are_as_many_buckets_as_chunks_and_one_rotation(length: int, count: int) -> None:
    assert LSH.lucidrains(2, 8).bucket_counts(length) == (count,)


@pytest.mark.parametrize(("length", "count"), [(0, 2), (1, 2), (24, 4), (33, 6), (48, 6), (49, 8)])
def test_other_lengths_have_the_buckets_of_the_next_even_number_of_chunks(length: int, count: int) -> None:
    assert LSH.lucidrains(2, 8).bucket_counts(length) == (count,)


def test_what_is_drawn_reaches_every_bucket_and_none_beyond() -> None:
    lsh, x = LSH.lucidrains(4, 8), torch.randn(1, 2, 336, 16)
    assert draw_buckets(x, lsh).unique().tolist() == list(range(42))
    assert LSHAttention(16, 2, lsh).draw(x[0]).max() < 42
