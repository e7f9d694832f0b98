"""The operators at chosen keys besides attention: an index's scores, and where heads look; with shapes and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..kernels.choice import first_of
from ..kernels.chosen import Heads, Index, MassRoad, Road
from ..kernels.hopper.chosen import HOPPER_MASS
from ..kernels.inverse_lists import standing
from ..kernels.layout import beside, empty_beside
from ..kernels.tiled.chosen import TILED_CHOSEN
from ..kernels.triton.chosen import TRITON_CHOSEN
from ..selectors.selection import Selection
from .boundary import LIBRARY, own_dtypes

ROADS: tuple[Road, ...] = (TRITON_CHOSEN, TILED_CHOSEN)
MASS_ROADS: tuple[MassRoad, ...] = (HOPPER_MASS, TRITON_CHOSEN, TILED_CHOSEN)
"""In the order in which they are tried."""

_CHOICE = "Tensor indices, Tensor? mask, bool causal"
torch.library.define(
    "gossamer::index_scores",
    f"(Tensor q, Tensor k, Tensor weights, {_CHOICE}, bool relu, str? backend) -> Tensor",
)
torch.library.define(
    "gossamer::index_scores_backward",
    f"(Tensor grad, Tensor q, Tensor k, Tensor weights, {_CHOICE}, bool relu, str? backend) "
    f"-> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "gossamer::attention_mass", f"(Tensor q, Tensor k, Tensor lse, {_CHOICE}, float scale, str? backend) -> Tensor"
)


def road(q: Tensor, name: str | None = None) -> Road:
    """The first road to scores that takes such queries, or the one called `name`.

    Raises:
        ValueError: There is no road called `name`.
        Unsupported: The named road, or every one, refuses; the message gives the reasons.
    """
    return first_of(ROADS, lambda each: each.refuses(q), name).taken()


def mass_road(heads: Heads, name: str | None = None) -> MassRoad:
    """The first road that tells where such heads look, or the one called `name`; raises as `road` does."""
    return first_of(MASS_ROADS, lambda each: each.refuses_mass(heads), name).taken()


def _places(k: Tensor, indices: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """int32 [B, Q, n], dense: the keys where they stand."""
    return standing(Selection(indices, causal=causal, mask=mask), k.shape[-2])[:, 0]


@torch.library.impl(LIBRARY, "index_scores", "CompositeExplicitAutograd")
def _index_scores(
    q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, mask: Tensor | None, causal: bool, relu: bool,
    backend: str | None,
) -> Tensor:  # fmt: skip
    with own_dtypes(q.device):
        places = _places(k, indices, mask, causal)
        return road(q, backend).scores(Index(q, k, weights, places, relu))


@torch.library.impl(LIBRARY, "index_scores_backward", "CompositeExplicitAutograd")
def _index_scores_backward(
    grad: Tensor, q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, mask: Tensor | None, causal: bool, relu: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with own_dtypes(q.device):
        places = _places(k, indices, mask, causal)
        dq, dk, dweights = road(q, backend).scores_backward(Index(q, k, weights, places, relu), grad)
    return beside(dq, q), dk.contiguous(), dweights.contiguous()


@torch.library.impl(LIBRARY, "attention_mass", "CompositeExplicitAutograd")
def _attention_mass(
    q: Tensor, k: Tensor, lse: Tensor, indices: Tensor, mask: Tensor | None, causal: bool, scale: float,
    backend: str | None,
) -> Tensor:  # fmt: skip
    with own_dtypes(q.device):
        heads = Heads(q, k, lse, _places(k, indices, mask, causal), scale)
        mass = mass_road(heads, backend).mass(heads)
        return mass.div_(mass.sum(-1, keepdim=True).clamp_(min=torch.finfo(mass.dtype).tiny))


@torch.library.register_fake("gossamer::index_scores")
def _index_scores_shape(q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, *_: Any) -> Tensor:
    return weights.new_empty(indices.shape[0], *indices.shape[2:])


@torch.library.register_fake("gossamer::index_scores_backward")
def _index_scores_backward_shapes(
    grad: Tensor, q: Tensor, k: Tensor, weights: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_beside(q, q.shape[3]), k.new_empty(k.shape), weights.new_empty(weights.shape)


@torch.library.register_fake("gossamer::attention_mass")
def _attention_mass_shape(q: Tensor, k: Tensor, lse: Tensor, indices: Tensor, *_: Any) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(indices.shape[0], *indices.shape[2:], dtype=wide)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.settings = inputs[5:]
    ctx.save_for_backward(*inputs[:5])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors  # asked for once: activations that are computed again are given once
    found = torch.ops.gossamer.index_scores_backward(grad, *tensors, *ctx.settings)
    return *found, *(None for _ in (*tensors[3:], *ctx.settings))


torch.library.register_autograd("gossamer::index_scores", _gradients, setup_context=_set_up)


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("index_scores has no gradients of gradients; leave create_graph out")


torch.library.register_autograd("gossamer::index_scores_backward", _refuse_second_gradients)


def _products(q: tuple[int, ...], indices: tuple[int, ...]) -> int:
    """Numbers multiplied where every place holds a key."""
    return q[0] * q[1] * q[2] * indices[-1] * q[3]


@register_flop_formula(torch.ops.gossamer.index_scores)
def _index_scores_operations(q, k, weights, indices, *_, out_shape=None, **__) -> int:
    return 2 * _products(q, indices)


@register_flop_formula(torch.ops.gossamer.index_scores_backward)
def _index_scores_backward_operations(grad, q, k, weights, indices, *_, out_shape=None, **__) -> int:
    return 6 * _products(q, indices)


@register_flop_formula(torch.ops.gossamer.attention_mass)
def _attention_mass_operations(q, k, lse, indices, *_, out_shape=None, **__) -> int:
    return 2 * _products(q, indices)
