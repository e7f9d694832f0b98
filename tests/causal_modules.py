"""What every causal self-attention module shall do, whatever it looks at. Each check raises AssertionError."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from gossamer.indexed import indexer_loss
from gossamer.nn.indexing import Indexing

Layer = Callable[..., Tensor]


def check_no_leak(layer: Layer, x: Tensor, times: Iterable[int]) -> None:
    """What comes after token t changes nothing up to t, to the bit, and does change what follows."""
    out = layer(x)
    for t in times:
        other = x.clone()
        other[:, t + 1 :] = 9.0 * torch.randn_like(other[:, t + 1 :])
        after = layer(other)
        assert torch.equal(out[:, : t + 1], after[:, : t + 1]), f"tokens after {t} changed an output before"
        assert t + 1 == x.shape[1] or not torch.equal(out, after), "the change was no change"


def check_pieces(layer: Layer, begin: Callable[[], object], x: Tensor, pieces: Sequence[int]) -> None:
    """Tokens that come in pieces, through a cache, give what they give in one go."""
    cache, whole = begin(), layer(x)
    found = torch.cat([layer(piece, cache=cache) for piece in x.split(list(pieces), dim=1)], dim=1)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-11)
    assert cache.seen == x.shape[1]


def check_picked(layer: Layer, begin: Callable[[], object], x: Tensor, tokens: int) -> None:
    """A cache goes on with the sequences that are picked."""
    cache, order = begin(), torch.tensor([1, 1, 0])
    layer(x[:, :tokens], cache=cache)
    cache.pick(order)
    found = layer(x[order, tokens:], cache=cache)
    torch.testing.assert_close(found, layer(x)[order, tokens:], rtol=1e-9, atol=1e-11)


def check_gradients_reach(module: nn.Module, out: Tensor, but: Sequence[str] = ()) -> None:
    """Of the module's parameters those whose names begin with one of `but` get no gradient, and all others get one."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
    for name, gradient in zip(names, found, strict=True):
        reached = gradient is not None and bool(gradient.any())
        assert reached != name.startswith(tuple(but)), f"{name} {'gets' if reached else 'gets no'} gradient"


def check_slope(layer: Layer, x: Tensor) -> None:
    """The gradient of x is the slope of the outputs, by differences in float64, along a few directions."""
    x = x.clone().requires_grad_()
    weights = torch.randn_like(layer(x))
    (gradient,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    for _ in range(3):
        step = 1e-6 * torch.randn_like(x)
        with torch.no_grad():
            rise = ((layer(x + step) - layer(x - step)) * weights).sum() / 2
        torch.testing.assert_close((gradient * step).sum(), rise, rtol=1e-5, atol=1e-9)


def check_indexer_learns(module: nn.Module, seen: Sequence[Indexing], *, relu: bool) -> None:
    """The loss of each index is positive, and reaches the indexer's parameters and no others."""
    losses = [
        indexer_loss(part.index, part.q, part.k, part.lse, part.selection, scale=part.scale, relu=relu) for part in seen
    ]
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True)
    reached = {name for name, grad in zip(names, found, strict=True) if grad is not None and grad.any()}
    assert min(losses) > 0 and reached == {name for name in names if ".indexer." in f".{name}"}
