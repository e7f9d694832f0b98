"""`NSAAttention`: each branch against its formula, full attention at the limit, no leak, and pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import Causal, attend
from gossamer.nn.heads import merged, split
from gossamer.nn.nsa import BRANCHES, NSAAttention, NSACache
from gossamer.nn.positions import rotated
from gossamer.selectors.nsa import NSA
from tests.causal_modules import check_gradients_reach, check_no_leak, check_picked, check_pieces, check_slope

SMALL = NSA(length=8, stride=4, block=8, count=3, first=1, local=1, window=10)
SHAPES = {"grouped": {"heads": 4, "key_heads": 2}, "one key head": {"heads": 4, "key_heads": 1, "value_width": 5}}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def layer(shape: str, nsa: NSA = SMALL, **options: object) -> NSAAttention:
    torch.manual_seed(0)
    made = NSAAttention(24, nsa=nsa, **SHAPES[shape], **options).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "compress" not in name:
                parameter.mul_(2.0)  # scores that differ
    return made


def inputs(length: int = 50) -> Tensor:
    return torch.randn(2, length, 24, dtype=torch.float64)


def alone(made: NSAAttention, branch: str) -> NSAAttention:
    """The same with the gates of one branch at 1 and of the others at 0."""
    with torch.no_grad():
        made.gate.weight.zero_()
        made.gate.bias.copy_(
            torch.tensor([1e4 if name == branch else -1e4 for name in BRANCHES]).repeat_interleave(made.heads)
        )
    return made


def softmax_over(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention by an explicit mask; zeros where nothing is seen."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def in_dense(made: NSAAttention, x: Tensor) -> Tensor:
    """The three branches of whole sequences by their masks, with gates; compressed and selected by loops."""
    nsa, length = made.nsa, x.shape[1]
    at = torch.arange(length)
    q = rotated(split(made.q_proj(x), made.heads), at)
    k = {name: split(made.keys[name](x), made.key_heads) for name in BRANCHES}
    v = {name: split(made.values[name](x), made.key_heads) for name in BRANCHES}
    starts = [s for s in range(0, length, nsa.stride) if s + nsa.length <= length]
    few = [
        [f(whole[:, :, s : s + nsa.length]) for s in starts]
        for f, whole in ((made.compress_keys, k["compressed"]), (made.compress_values, v["compressed"]))
    ]
    if starts:
        few_k, few_v = rotated(torch.cat(few[0], 2), torch.tensor(starts)), torch.cat(few[1], 2)
    else:
        few_k, few_v = k["compressed"][:, :, :0], v["compressed"][:, :, :0]
    seen = at[:, None] >= torch.tensor(starts, dtype=torch.int64) + nsa.length - 1
    lse = q @ few_k.repeat_interleave(made.heads // made.key_heads, 1).mT * q.shape[-1] ** -0.5
    lse = lse.masked_fill(~seen, -torch.inf).logsumexp(-1)
    chosen = nsa.select(q, few_k, lse, length).indices  # its own tests compare it with its definition
    of_blocks = (chosen[..., None] == at // nsa.block).any(3).tril().repeat_interleave(made.heads // made.key_heads, 1)
    near = (at[:, None] - at < nsa.window).tril()
    outs = (
        softmax_over(q, few_k, few_v, seen),
        softmax_over(q, rotated(k["selected"], at), v["selected"], of_blocks),
        softmax_over(q, rotated(k["window"], at), v["window"], near),
    )
    gates = made.gate(x).sigmoid().unflatten(-1, (3, made.heads))
    return made.o_proj(merged(sum(out * gates[:, :, i].mT[..., None] for i, out in enumerate(outs))))


@every_shape
@pytest.mark.parametrize("length", [1, 7, 8, 50])
def test_it_is_the_formula(shape: str, length: int) -> None:
    made, x = layer(shape), inputs(length).requires_grad_()
    found, right = made(x), in_dense(made, x)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-11)
    leaves = [x, *made.parameters()]
    grads = [
        torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        for out in (found, right)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@every_shape
@pytest.mark.parametrize(
    ("branch", "nsa"),
    [
        ("selected", NSA(length=8, stride=4, block=8, count=7, first=1, local=1, window=10)),
        ("selected", NSA(length=8, stride=4, block=64, count=2, first=1, local=1, window=10)),
        ("window", NSA(length=8, stride=4, block=8, count=3, first=1, local=1, window=50)),
    ],
)
def test_a_branch_that_sees_all_is_full_attention(shape: str, branch: str, nsa: NSA) -> None:
    made, x = alone(layer(shape, nsa), branch), inputs()
    at = torch.arange(50)
    k, v = split(made.keys[branch](x), made.key_heads), split(made.values[branch](x), made.key_heads)
    right = attend(rotated(split(made.q_proj(x), made.heads), at), rotated(k, at), v, Causal())
    torch.testing.assert_close(made(x), made.o_proj(merged(right)), rtol=1e-9, atol=1e-11)


def test_before_the_first_whole_block_compression_gives_nothing() -> None:
    made = alone(layer("grouped"), "compressed")
    out = made(inputs())
    assert not out[:, :7].any() and out[:, 7:].any(-1).all()


@every_shape
def test_nothing_of_the_future_is_seen(shape: str) -> None:
    check_no_leak(layer(shape), inputs(40), range(40))


def test_a_leak_would_be_found() -> None:
    """A compressed block that is seen one token before its last."""

    class Early(NSA):
        def seen(self, positions: Tensor) -> Tensor:
            return super().seen(positions + 1)

    early = Early(length=8, stride=4, block=8, count=3, first=1, local=1, window=10)
    with pytest.raises(AssertionError, match="changed an output before"):
        check_no_leak(layer("grouped", early), inputs(40), range(39))


@every_shape
@pytest.mark.parametrize("pieces", [[1] * 50, [20, 1, 29], [50], [3, 47]], ids=str)
def test_pieces_through_a_cache_equal_the_whole(shape: str, pieces: list[int]) -> None:
    check_pieces(layer(shape), NSACache, inputs(), pieces)


def test_a_cache_goes_on_with_picked_sequences() -> None:
    check_picked(layer("grouped"), NSACache, inputs(), 30)


def test_window_and_tail_do_not_grow() -> None:
    cache, made = NSACache(), layer("grouped")
    with torch.no_grad():
        for _ in range(60):
            made(inputs(1)[:1], cache=cache)
            assert all(rows.shape[-2] <= 9 for rows in cache.window.rows)
            assert all(rows.shape[-2] <= 7 for rows in cache.tail.rows)
    assert cache.seen == 60 and cache.compressed.seen == SMALL.compressed(60)


@every_shape
def test_gradients_reach_every_parameter_and_are_slopes(shape: str) -> None:
    made = layer(shape)
    check_gradients_reach(made, made(inputs()))
    check_slope(made, inputs(20))


def test_selection_alone_sends_no_gradient_into_compression() -> None:
    made = alone(layer("grouped"), "selected")
    unreached = ["keys.compressed", "values.compressed", "compress_", "keys.window", "values.window", "gate"]
    check_gradients_reach(made, made(inputs()), but=unreached)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4, "key_heads": 3}, "NSAAttention: heads is 4 and key_heads is 3"),
        ({"heads": 5, "key_heads": 5}, "NSAAttention: width is 24; give a multiple of the 5 heads, or head_width"),
        ({"heads": 4, "key_heads": 2, "value_width": -3}, "NSAAttention: value_width is -3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NSAAttention(24, **options)
