"""One softmax over a pattern's keys and a few chosen ones, beside dense masks in float64."""

import pytest
import torch
import torch.nn.functional as F

from gossamer.nn import few_tokens
from gossamer.nn.few_tokens import Seen, attend_with_few
from gossamer.nn.global_tokens import GlobalTokens
from gossamer.nn.heads import merged
from gossamer.patterns import Causal, PerHead, Window

LENGTH, HEADS, WIDTH = 23, 3, 8
CHOSEN = torch.zeros(2, LENGTH, dtype=torch.bool)
CHOSEN[0, [2, 11, 12]] = CHOSEN[1, 20] = True
PATTERNS = {"causal": Causal() & Window(4), "per head": PerHead([(Window(3), 2), (Causal() & Window(6), 1)])}
patterns = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())


def drawn(size=1.0):
    q, k, v = (torch.randn(2, LENGTH, HEADS, WIDTH, dtype=torch.float64).transpose(1, 2) for _ in range(3))
    rows = torch.randn(int(CHOSEN.sum()), HEADS, WIDTH, dtype=torch.float64)
    return [x.requires_grad_() for x in (size * q, k, v, rows)]


def allowed(pattern):
    return torch.stack([torch.as_tensor(pattern.for_head(head).dense_mask(LENGTH)) for head in range(HEADS)])


def far(pattern):
    """Where a query sees a chosen key outside its pattern [B, H, m, N], of all that are chosen."""
    chosen = GlobalTokens.of(CHOSEN)
    inside = allowed(pattern)[:, :, chosen.index].permute(2, 0, 3, 1)  # [B, H, m, N]
    return chosen, ~inside & chosen.real[:, None, :, None]


def joined(inputs, pattern, **more):
    chosen, seen = far(pattern)
    outside = torch.where(seen, 0.0, -torch.inf)
    within = more.pop("within", None)
    return attend_with_few(*inputs[:3], chosen, Seen(pattern, outside, within), rows=inputs[3], **more)


def densely(inputs, pattern, within=None):
    q, k, v, rows = inputs
    seen = allowed(pattern)[None] | CHOSEN[:, None, None]
    out = merged(F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
    if within is not None:
        positions = torch.arange(LENGTH)
        inside = (within[:, :1] <= positions) & (positions < within[:, 1:])
        seen = seen & inside[:, None, None]
        out = merged(F.scaled_dot_product_attention(q, k, v, attn_mask=seen)) * inside[..., None]
    return out.masked_scatter(CHOSEN[..., None], rows.flatten(1))


def check(found, right, inputs):
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(right)
    gradients = (torch.autograd.grad((out * weight).sum(), inputs) for out in (found, right))
    for pair in zip(*gradients, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-10)


@patterns
@pytest.mark.parametrize("dropout", [0.0, 1e-12])
def test_it_is_one_softmax(pattern, dropout):
    inputs = drawn()
    check(joined(inputs, pattern, dropout=dropout), densely(inputs, pattern), inputs)


@patterns
def test_padding_takes_nothing(pattern):
    inputs, within = drawn(), torch.tensor([[2, 19], [15, 23]], dtype=torch.int32)
    found = joined(inputs, pattern, within=within)
    assert not found[0, :2].any() and not found[0, 19:].any() and not found[1, :15].any()
    check(found, densely(inputs, pattern, within), inputs)


@patterns
def test_it_is_exact_where_one_part_has_all_the_weight(pattern):
    """Scores in the thousands: the weight of the window, or of the chosen keys, is 0 in any precision."""
    inputs = drawn(1000.0)
    check(joined(inputs, pattern), densely(inputs, pattern), inputs)


def test_dropout_keeps_the_mean():
    pattern, (q, k, v, rows) = PATTERNS["causal"], drawn()
    inputs = q, k, torch.ones_like(v), rows
    several = torch.stack([joined(inputs, pattern, dropout=0.5) for _ in range(200)])[:, ~CHOSEN]
    assert several.std(0).min() > 0.05
    torch.testing.assert_close(several.mean().item(), 1.0, rtol=0, atol=0.02)


def test_dropout_has_the_gradient_of_what_it_drew():
    pattern, inputs = PATTERNS["causal"], drawn()

    def drops(*inputs):
        torch.manual_seed(0)
        return joined(inputs, pattern, dropout=0.5)

    assert torch.autograd.gradcheck(drops, inputs, fast_mode=True)


def test_ends_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"within is torch\.int32 of shape \(3, 2\)"):
        joined(drawn(), PATTERNS["causal"], within=torch.zeros(3, 2, dtype=torch.int32))


@patterns
def test_heads_that_lie_outside_of_positions_have_the_same_gradients(pattern):
    inputs = [x.detach().contiguous().requires_grad_() for x in drawn()]
    check(joined(inputs, pattern), densely(inputs, pattern), inputs)


@patterns
def test_kernels_meet_no_infinite_sum(pattern, monkeypatch):
    """A GPU's kernel writes it as the sum of three numbers, of which an infinite one makes the others NaN."""
    sums, backward = [], few_tokens.attend_backward_eagerly

    def watched(*inputs):
        sums.append(inputs[6])
        return backward(*inputs)

    monkeypatch.setattr(few_tokens, "attend_backward_eagerly", watched)
    joined(drawn(1000.0), pattern).sum().backward()
    assert sums[0].isfinite().all()
