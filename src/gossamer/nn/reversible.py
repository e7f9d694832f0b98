"""Reversible residual layers: the backward computes activations again from the outputs, and keeps none before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Attention(Protocol):
    """What stands first in a layer; what it draws by chance is drawn apart, so that it can be used twice."""

    def draw(self, x: Tensor) -> Tensor | None:
        """What a forward of `x` decides by chance or by a hash (buckets), or None where there is no such thing."""
        ...

    def __call__(self, x: Tensor, *, within: Tensor | None = None, buckets: Tensor | None = None) -> Tensor: ...


class ReversibleLayer(nn.Module):
    """`y1 = x1 + attention(x2)` and `y2 = x2 + feed_forward(y1)`, from which x2 and then x1 can be had back."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module):
        super().__init__()
        self.attention: Any = attention
        self.feed_forward = feed_forward

    def forward(
        self,
        x1: Float[Tensor, "B N E"],
        x2: Float[Tensor, "B N E"],
        *,
        within: Tensor | None = None,
        buckets: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]:
        """(y1, y2), with activations stored as autograd stores them."""
        y1 = x1 + self.attention(x2, within=within, buckets=buckets)
        return y1, x2 + self.feed_forward(y1)

    def draw(self, x2: Float[Tensor, "B N E"]) -> Tensor | None:
        """The attention's buckets for this input; no gradient runs through them."""
        with torch.no_grad(), _autocast(x2.device)():
            return self.attention.draw(x2)


class ReversibleOutput(NamedTuple):
    """The last layer's pair, and the buckets that each layer used."""

    y1: Float[Tensor, "B N E"]
    y2: Float[Tensor, "B N E"]
    buckets: list[Tensor | None]


class ReversibleLayers(nn.Module):
    """Layers of attention and feed-forward whose backward reconstructs each one's input from its output.

    Only the last pair (y1, y2) is kept, and of each layer its buckets, so memory for activations does not grow with
    the depth (Gomez et al. 2017, arXiv 1707.04585; Kitaev et al. 2020, arXiv 2001.04451, section 3). Each layer runs
    once more in the backward: with the buckets of the forward, as rounding may hash a reconstructed input otherwise;
    and with the generators where they stood, so that dropout drops the same. Set `stored` to keep activations instead
    and run nothing twice.

    Gradients reach parameters as autograd's own: shared parameters sum up, and hooks and DistributedDataParallel see
    each one as soon as its layer is done. Forward hooks run twice. A feed-forward that says by `chunk` that it takes so
    many positions at a time is run again by as many. An attention or a feed-forward may read nothing that needs
    gradients but its input and its parameters. What comes back of an input is exact to rounding of the stream: let x1
    and x2 be float32 (as under autocast) where there are many layers.
    """

    def __init__(self, pairs: Iterable[tuple[nn.Module, nn.Module]], *, stored: bool = False):
        super().__init__()
        self.layers: Any = nn.ModuleList(ReversibleLayer(*pair) for pair in pairs)
        self.stored = stored

    def forward(
        self,
        x1: Float[Tensor, "B N E"],
        x2: Float[Tensor, "B N E"],
        *,
        within: Tensor | None = None,
        buckets: Sequence[Tensor | None] | None = None,
    ) -> ReversibleOutput:
        """The last pair, and what was drawn on the way.

        Args:
            within: Handed to each attention: int32 [B, 2], where each sequence begins and ends.
            buckets: One entry a layer, as an earlier output has them; None draws the layer's anew.

        Raises:
            ValueError: `buckets` has not one entry a layer.
        """
        given = [None] * len(self.layers) if buckets is None else list(buckets)
        if len(given) != len(self.layers):
            raise ValueError(
                f"buckets has {len(given)} entries for {len(self.layers)} layers; give one a layer, or None for all"
            )
        drawn: list[Tensor | None] = []
        tape = _Tape()
        for number, (layer, own) in enumerate(zip(self.layers, given, strict=True)):
            own = layer.draw(x2) if own is None else own
            drawn.append(own)
            if self.stored or not torch.is_grad_enabled():
                x1, x2 = layer(x1, x2, within=within, buckets=own)
            else:
                parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
                last = number == len(self.layers) - 1
                x1, x2 = _Reversed.apply(_Step(layer, tape, within, own, number == 0, last), x1, x2, *parameters)
        return ReversibleOutput(x1, x2, drawn)


class _Tape:
    """Where the backward of a layer leaves its reconstructed input for that of the layer before."""

    pair: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class _Step:
    """One layer of one forward, and all that its second run has to share with the first."""

    layer: ReversibleLayer
    tape: _Tape
    within: Tensor | None
    buckets: Tensor | None
    first: bool
    last: bool

    def attention(self, x2: Tensor) -> Tensor:
        return self.layer.attention(x2, within=self.within, buckets=self.buckets)


class _Reversed(torch.autograd.Function):
    """A layer that saves nothing but its outputs, and those only where it is the last."""

    @staticmethod
    def forward(ctx: Any, step: _Step, x1: Tensor, x2: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.step, ctx.parameters = step, parameters
        ctx.autocast = _autocast(x1.device)
        with ctx.autocast():
            ctx.before_attention = _Generators.of(x1.device)
            y1 = x1 + step.attention(x2)
            ctx.before_feed_forward = _Generators.of(x1.device)
            y2 = x2 + step.layer.feed_forward(y1)
        if step.last:
            ctx.save_for_backward(y1, y2)
        return y1, y2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "ReversibleLayers has no gradients of gradients; leave create_graph out, or set stored=True"
            )
        step, (dy1, dy2) = ctx.step, gradients
        y1, y2 = ctx.saved_tensors if step.last else step.tape.pair
        with ctx.autocast():
            feed_forward = step.layer.feed_forward
            chunk = getattr(feed_forward, "chunk", 0) or max(y1.shape[1], 1)
            with ctx.before_feed_forward.restored():
                fed, dx, by_feed_forward = _again(feed_forward, y1, dy2, ctx.parameters, chunk)
            x2, dy1 = y2 - fed, dy1 + dx
            del fed
            with ctx.before_attention.restored():
                attended, dx, by_attention = _again(step.attention, x2, dy1, ctx.parameters, max(x2.shape[1], 1))
            x1, dy2 = y1 - attended, dy2 + dx
        step.tape.pair = None if step.first else (x1, x2)
        return None, dy1, dy2, *map(_sum, by_attention, by_feed_forward)


def _again(
    function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, parameters: Sequence[Tensor], chunk: int
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """(the function's value at x, gradient of x, gradients of the parameters), by parts of `chunk` positions, each
    of which is forgotten before the next."""
    values, dxs = [], []
    sums: list[Tensor | None] = [None] * len(parameters)
    for part, wanted in zip(x.split(chunk, dim=1), gradient.split(chunk, dim=1), strict=True):
        part = part.detach().requires_grad_()
        with torch.enable_grad():
            y = function(part)
        dx, *rest = torch.autograd.grad(y, (part, *parameters), wanted.to(y.dtype), allow_unused=True)
        values.append(y.detach())
        dxs.append(torch.zeros_like(part) if dx is None else dx)
        sums = list(map(_sum, sums, rest))
    return _joined(values), _joined(dxs), sums


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a + b if a is not None and b is not None else a if b is None else b


def _autocast(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """The autocast of here and now, to be entered later. Without its cache of cast weights: there, releases of PyTorch
    up to 2.10 let those who take gradients find what was cast while none was taken (pytorch#158232)."""
    kind = device.type
    if not _has_autocast(kind):
        return nullcontext
    settings = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
    return partial(torch.autocast, kind, cache_enabled=False, **settings)


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace the question
def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


@dataclass(frozen=True, eq=False)
class _Generators:
    """Where the generators stood of the CPU and of the device that a layer runs on: some kilobytes on the host."""

    device: torch.device
    host: Tensor
    own: Tensor | None

    @staticmethod
    def of(device: torch.device) -> _Generators:
        own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return _Generators(device, torch.get_rng_state(), own)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, draws are those that followed; afterwards the generators stand where they stood."""
        now = _Generators.of(self.device)
        self._set()
        try:
            yield
        finally:
            now._set()

    def _set(self) -> None:
        torch.set_rng_state(self.host)
        if self.own is not None:
            torch.get_device_module(self.device).set_rng_state(self.own, self.device)
