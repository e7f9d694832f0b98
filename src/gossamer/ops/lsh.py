"""The operators of hashed attention: buckets, and attention over chunks of sorted tokens, with shapes and autograd.

What hashing and sorting have found crosses as tensors of integers, through which no gradient passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..kernels.choice import first_of
from ..kernels.hashed import Forwarded, Road, Scores
from ..kernels.layout import beside, empty_beside
from ..kernels.tiled.hashed import TILED_HASHED
from ..kernels.triton.hashed import TRITON_HASHED
from ..selectors.lsh import hash_vectors
from ..selectors.rounds import Chunks, SortedRounds
from .boundary import LIBRARY, own_dtypes

ROADS: tuple[Road, ...] = (TRITON_HASHED, TILED_HASHED)
"""In the order in which they are tried."""

_ROUNDS = "Tensor order, Tensor? place, Tensor? start, Tensor? stop, Tensor? count"
_SETTINGS = "int chunk, int before, int after, str edge, bool causal, float scale, float epsilon, str? backend"
torch.library.define("gossamer::lsh_hash", "(Tensor x, Tensor rotations, int[] counts) -> Tensor")
torch.library.define("gossamer::lsh_attend", f"(Tensor x, Tensor v, {_ROUNDS}, {_SETTINGS}) -> (Tensor, Tensor)")
torch.library.define(
    "gossamer::lsh_attend_backward",
    f"(Tensor grad_out, Tensor? grad_lse, Tensor x, Tensor v, Tensor out, Tensor lse, {_ROUNDS}, {_SETTINGS}) "
    f"-> (Tensor, Tensor)",
)


def road(x: Tensor, v: Tensor, name: str | None = None) -> Road:
    """The first road that takes such tensors, or the one called `name`.

    Raises:
        ValueError: There is no road called `name`.
        Unsupported: The named road, or every one, refuses; the message gives the reasons.
    """
    return first_of(ROADS, lambda each: each.refuses(x, v), name).taken()


@torch.library.impl(LIBRARY, "lsh_hash", "CompositeExplicitAutograd")
def _lsh_hash(x: Tensor, rotations: Tensor, counts: Sequence[int]) -> Tensor:
    if TRITON_HASHED.refuses(x, x) is None and rotations.dtype == x.dtype:
        return TRITON_HASHED.hash(x, rotations, tuple(counts))
    return hash_vectors(x, rotations, counts)


@torch.library.register_fake("gossamer::lsh_hash")
def _lsh_hash_shapes(x: Tensor, rotations: Tensor, counts: Sequence[int]) -> Tensor:
    batch, heads, length, _ = x.shape
    return x.new_empty(batch, heads, rotations.shape[2], length, dtype=torch.int64)


@torch.library.impl(LIBRARY, "lsh_attend", "CompositeExplicitAutograd")
def _lsh_attend(x: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    rounds, scores, backend = _read(given)
    with own_dtypes(x.device):
        out, lse = road(x, v, backend).forward(x, v, rounds, scores)
    return beside(out, v), lse.contiguous()


@torch.library.impl(LIBRARY, "lsh_attend_backward", "CompositeExplicitAutograd")
def _lsh_attend_backward(
    grad_out: Tensor, grad_lse: Tensor | None, x: Tensor, v: Tensor, out: Tensor, lse: Tensor, *given: Any
) -> tuple[Tensor, Tensor]:
    rounds, scores, backend = _read(given)
    if grad_lse is not None:  # a token that sees nothing has no log-sum-exp to change, whatever comes back to it
        grad_lse = grad_lse.masked_fill(lse == -torch.inf, 0.0)
    with own_dtypes(x.device):
        chosen = road(x, v, backend)
        dx, dv = chosen.backward(Forwarded(x, v, out, lse), grad_out, grad_lse, rounds, scores)
    return beside(dx, x), beside(dv, v)


def _read(given: tuple[Any, ...]) -> tuple[SortedRounds, Scores, str | None]:
    """The flat arguments of the operators, by name."""
    *tensors, chunk, before, after, edge, causal, scale, epsilon, backend = given
    return SortedRounds(*tensors), Scores(Chunks(chunk, before, after, edge, causal), scale, epsilon), backend


@torch.library.register_fake("gossamer::lsh_attend")
def _lsh_attend_shapes(x: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.promote_types(x.dtype, torch.float32)
    return empty_beside(v, v.shape[-1]), x.new_empty(x.shape[:-1], dtype=lse_dtype)


@torch.library.register_fake("gossamer::lsh_attend_backward")
def _lsh_attend_backward_shapes(
    grad_out: Tensor, grad_lse: Tensor | None, x: Tensor, v: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return empty_beside(x, x.shape[-1]), empty_beside(v, v.shape[-1])


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.settings = inputs[:7], inputs[7:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    x, v, *rounds, out, lse = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    given = grad_out, grad_lse, x, v, out, lse, *rounds, *ctx.settings
    dx, dv = torch.ops.gossamer.lsh_attend_backward(*given)
    return dx, dv, *(None for _ in (*rounds, *ctx.settings))


torch.library.register_autograd("gossamer::lsh_attend", _gradients, setup_context=_set_up)


def _refuse_second_gradients(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError("lsh_attend has no gradients of gradients; leave create_graph out")


torch.library.register_autograd("gossamer::lsh_attend_backward", _refuse_second_gradients)


def _pairs(x: tuple[int, ...], order: tuple[int, ...], chunks: Chunks) -> int:
    """Pairs that meet, as if all chunks were full and all that is met were seen."""
    batch, heads, length, _ = x
    return batch * heads * order[2] * length * chunks.met(length, order[2]) * chunks.size


@register_flop_formula(torch.ops.gossamer.lsh_attend)
def _lsh_attend_operations(x, v, order, place, start, stop, count, *settings, out_shape=None, **__) -> int:
    return 2 * _pairs(x, order, Chunks(*settings[:5])) * (x[3] + v[3])  # scores, output


@register_flop_formula(torch.ops.gossamer.lsh_attend_backward)
def _lsh_attend_backward_operations(
    grad_out, grad_lse, x, v, out, lse, order, place, start, stop, count, *settings, out_shape=None, **__
) -> int:
    return 2 * _pairs(x, order, Chunks(*settings[:5])) * (3 * x[3] + 2 * v[3])
