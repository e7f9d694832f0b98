"""The oracle itself, against the formula written out number by number."""

import math

import pytest
import torch
import torch.nn.functional as F

from gossamer.patterns import Blocks, Causal, PerHead, Sinks, Window
from gossamer.reference import reference, visible


def by_hand(q, k, v, sees, *, scale, softcap=None, sink=None, keep=None):
    """One head, lists in, lists out."""
    outs, lses = [], []
    for i, row in enumerate(q):
        scores = {j: scale * sum(a * b for a, b in zip(row, key, strict=True)) for j, key in enumerate(k) if sees[i][j]}
        if softcap:
            scores = {j: softcap * math.tanh(score / softcap) for j, score in scores.items()}
        total = sum(map(math.exp, scores.values())) + (0 if sink is None else math.exp(sink))
        weights = {j: math.exp(score) / total * (keep[i][j] if keep else 1) for j, score in scores.items()}
        outs.append([sum(weight * v[j][c] for j, weight in weights.items()) for c in range(len(v[0]))])
        lses.append(math.log(total) if total else -math.inf)
    return outs, lses


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_the_oracle_is_the_formula(softcap: float | None, with_sinks: bool) -> None:
    pattern = PerHead([(Causal() & Window(2), 1), (~Causal(), 1)])
    q, k, v = (torch.randn(1, heads, 4, width).double() for heads, width in ((2, 3), (1, 3), (1, 5)))
    sinks = torch.randn(2).double() if with_sinks else None
    keep = torch.randint(2, (1, 2, 4, 4)).double() * 2
    out, lse = reference(q, k, v, pattern, scale=0.3, softcap=softcap, sinks=sinks, keep=keep)
    for head, sees in enumerate(pattern.dense_mask(4)):
        right_out, right_lse = by_hand(
            q[0, head].tolist(), k[0, 0].tolist(), v[0, 0].tolist(), sees,
            scale=0.3, softcap=softcap, sink=sinks[head].item() if with_sinks else None, keep=keep[0, head].tolist(),
        )  # fmt: skip
        torch.testing.assert_close(out[0, head], torch.tensor(right_out).double())
        torch.testing.assert_close(lse[0, head], torch.tensor(right_lse).double())


def test_it_is_torch_s_attention_where_both_exist() -> None:
    q, k, v = torch.randn(2, 4, 7, 8).double(), torch.randn(2, 2, 7, 8).double(), torch.randn(2, 2, 7, 3).double()
    torch.testing.assert_close(
        reference(q, k, v, Causal())[0], F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    )


def test_it_computes_in_float64_whatever_comes_in() -> None:
    q = torch.randn(1, 1, 4, 8).bfloat16()
    out, lse = reference(q, q, q, Causal())
    assert out.dtype == lse.dtype == torch.float64
    assert torch.equal(out, reference(q.double(), q.double(), q.double(), Causal())[0])


def test_rows_that_see_nothing_are_zero() -> None:
    q = torch.randn(1, 1, 6, 8, requires_grad=True)
    out, lse = reference(q, q, q, Blocks(2, ["1", "0"]))
    assert (out[:, :, 2:] == 0).all() and (lse[:, :, 2:] == -torch.inf).all()
    assert not out.isnan().any()
    (gradient,) = torch.autograd.grad(out.sum() + lse[:, :, :2].sum(), q)
    assert gradient.isfinite().all() and (gradient[:, :, 2:] == 0).all()


def test_visible_is_the_dense_mask() -> None:
    mask = visible(Sinks(2), 3, 5, torch.device("cpu"))
    assert mask.tolist() == [[True, True, False, False, False]] * 3
