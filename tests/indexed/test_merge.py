"""`merge_attention`: parts are one softmax again, whatever some of them see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import Causal, Window, attend
from gossamer.indexed import Selection, attend_indexed, merge_attention


def part(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    scores = (q @ k.mT).masked_fill(~seen, -torch.inf)
    nothing = ~seen.any(-1, keepdim=True)
    weights = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    return weights @ v, scores.masked_fill(nothing, 0.0).logsumexp(-1).masked_fill(nothing[..., 0], -torch.inf)


def drawn() -> tuple[Tensor, ...]:
    q, k, v = torch.randn(3, 1, 2, 9, 4, dtype=torch.float64)
    owner = torch.randint(4, (9, 9))  # of whom part 3 is nobody's
    owner[4] = 3
    owner[5] = 0
    return *(x.requires_grad_() for x in (q, k, v)), owner


@pytest.mark.parametrize("sinks", [False, True])
def test_parts_are_one_softmax(sinks: bool) -> None:
    q, k, v, owner = drawn()
    logits = torch.randn(2, dtype=torch.float64, requires_grad=True) if sinks else None
    found = merge_attention([part(q, k, v, owner == number) for number in range(3)], logits)
    scores = (q @ k.mT).masked_fill(owner == 3, -torch.inf)
    if logits is not None:
        scores = torch.cat([scores, logits[:, None, None].expand(1, 2, 9, 1)], -1)
    nothing = scores.isneginf().all(-1, keepdim=True)
    scores = scores.masked_fill(nothing, 0.0)
    wanted = scores.softmax(-1).masked_fill(nothing, 0.0)[..., :9] @ v, scores.logsumexp(-1)
    lse = wanted[1].masked_fill(nothing[..., 0], -torch.inf)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], lse, rtol=1e-12, atol=1e-12)
    inputs = (q, k, v) if logits is None else (q, k, v, logits)
    come = torch.randn_like(found[0]), torch.randn_like(lse)
    grads = []
    for out, norm in (found, (wanted[0], lse)):
        grads.append(torch.autograd.grad([out, norm.masked_fill(lse.isneginf(), 0.0)], inputs, come))
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


def test_its_gradient_is_the_derivative() -> None:
    parts = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64), torch.randn(2, 1, 2, 3, dtype=torch.float64)
    given = [x.requires_grad_() for x in (*parts, torch.randn(2, dtype=torch.float64))]
    assert torch.autograd.gradcheck(
        lambda out, lse, sinks: merge_attention(list(zip(out, lse, strict=True)), sinks), given
    )


def test_a_part_that_sees_nothing_may_hold_anything() -> None:
    out, lse = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3)
    nothing = torch.full_like(out, torch.nan), torch.full_like(lse, -torch.inf)
    found = merge_attention([nothing, (out, lse)])
    torch.testing.assert_close(found, (out, lse))
    for x, y in zip(merge_attention([nothing, nothing]), (torch.zeros_like(out), nothing[1]), strict=True):
        assert torch.equal(x, y)


def test_large_numbers_do_not_overflow() -> None:
    out, lse = torch.randn(2, 1, 1, 5, 4), torch.tensor([[3e4] * 5, [-3e4] * 5]).view(2, 1, 1, 5)
    merged, norm = merge_attention([(out[0], lse[0]), (out[1], lse[1])])
    assert torch.equal(merged, out[0]) and torch.equal(norm, lse[0])


def test_half_precision_comes_back_in_its_own_dtype() -> None:
    out, lse = torch.randn(1, 2, 3, 4).bfloat16(), torch.randn(1, 2, 3)
    merged, norm = merge_attention([(out, lse), (out, lse)])
    assert merged.dtype == torch.bfloat16 and norm.dtype == torch.float32
    assert torch.equal(merged, out)


def test_a_window_and_what_was_chosen_before_it_are_one_softmax() -> None:
    q, k, v = torch.randn(3, 1, 2, 30, 8, dtype=torch.float64)
    far = torch.arange(30)[:, None] - 5 - torch.arange(3) * 4  # all before the window
    window = attend(q, k, v, Causal() & Window(4), return_lse=True)
    chosen = attend_indexed(q, k, v, Selection(far[None]), return_lse=True)
    seen = torch.zeros(30, 31, dtype=torch.bool).scatter_(1, far.where(far >= 0, 30), True)[:, :30]
    seen |= torch.ones(30, 30, dtype=torch.bool).tril() & ~torch.ones(30, 30, dtype=torch.bool).tril(-4)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(merge_attention([window, chosen])[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("parts", "sinks", "said"),
    [
        ([], None, "parts is empty"),
        ([(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4))], None, "parts[0] is of shapes (1, 2, 3, 4) and (1, 2, 4)"),
        ([(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3))], torch.zeros(3), "sinks has shape (3,)"),
    ],
)
def test_what_does_not_fit_is_named(parts: list, sinks: Tensor | None, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        merge_attention(parts, sinks)
    assert str(raised.value).startswith(said)
