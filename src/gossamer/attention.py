"""`attend`: softmax attention over the pairs that a pattern allows. What most people call. `explain` says how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .kernels import Choice, Softmax, choose
from .ops.attend import attend_eagerly, problem_of
from .patterns.base import Pattern
from .patterns.parse import checked_text
from .plan import Plan
from .repeats import leave_way, way_of


@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *,
    scale: float | None = ..., dropout: float = ..., sinks: Tensor | None = ..., softcap: float | None = ...,
    lengths: Tensor | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *,
    scale: float | None = ..., dropout: float = ..., sinks: Tensor | None = ..., softcap: float | None = ...,
    lengths: Tensor | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attend(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K Dv"],
    pattern: Pattern,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    sinks: Float[Tensor, " H"] | None = None,
    softcap: float | None = None,
    lengths: Int[Tensor, " B"] | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "B H Q Dv"] | tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]:
    """Softmax attention over the pairs that `pattern` allows, and over no others.

    A query that may see nothing returns zeros and log-sum-exp minus infinity. Time and memory follow the plan of
    the pattern, never n×n. The last query stands at the last key, so decoding needs no offset. G divides H: each
    key head serves H/G query heads.

    Args:
        scale: Factor on the scores; 1/sqrt(D) by default.
        dropout: Probability that a pair is dropped, the others scaled up; drawn from torch's generator at each call.
        sinks: One logit a head that joins the softmax's denominator only; receives gradients.
        softcap: Scores become `softcap · tanh(score / softcap)`.
        lengths: How many keys each sequence has, int32 or int64 on the device of q: keys at or beyond `lengths[b]`
            do not exist, and the last query stands at the last key before it. So k and v can be a cache of fixed
            capacity that fills up under one CUDA graph: GPU kernels read the values on the device alone, and nobody
            checks that they are at most K. Where a length is below Q, the leading queries see nothing.
        return_lse: Also return the natural log-sum-exp of the scores (sinks included), float32, or float64 for
            float64; it carries gradients.
        backend: Name of the backend to use; by default the first that accepts the problem.

    Raises:
        ValueError: Shapes, dtypes, devices or settings that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.
        RuntimeError: A tensor carries a tangent of forward-mode differentiation, which there is not.
    """
    _check_settings(pattern, scale, dropout, softcap, backend)
    compiling = torch.compiler.is_compiling()
    text = pattern.spec if compiling else checked_text(pattern)
    scale = None if scale is None else float(scale)
    softcap = None if softcap is None else float(softcap)
    q, k, v = _autocast(q, k, v)
    return_lse = bool(return_lse)
    asked = text, scale, softcap, backend, return_lse
    plain = sinks is None and lengths is None and not dropout and not compiling
    way = way_of(q, k, v, asked) if plain else None
    if way is not None:
        out, lse = way.take(q, k, v)
        return (out, lse) if return_lse else out
    _check_kinds(q, k, v, sinks, lengths)
    _check_tensors(q, k, v, sinks, lengths)
    seed = torch.randint(2**62, (1,), device=q.device) if dropout > 0 else None
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    settings = text, scale, softcap or 0.0, float(dropout), backend
    out, lse = attend_eagerly(q, k, v, sinks, seed, lengths, *settings)
    if plain:
        leave_way(q, k, v, asked, *settings, lse=return_lse)
    return (out, lse) if return_lse else out


@dataclass(frozen=True, eq=False)
class Explanation:
    """What runs for a call of `attend`, and why; `print` it."""

    plan: Plan
    forward: Choice
    backward: Choice

    def __str__(self) -> str:
        return f"{self.plan}\nforward runs on {self.forward}\nbackward runs on {self.backward}"


def explain(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K Dv"],
    pattern: Pattern,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    sinks: Float[Tensor, " H"] | None = None,
    softcap: float | None = None,
    lengths: Int[Tensor, " B"] | None = None,
    backend: str | None = None,
) -> Explanation:
    """The plan of a call of `attend`, the backend that it runs on, and why each one before refuses.

    Nothing is computed: tensors on the device count by shape and dtype alone. The arguments are those of `attend`.

    >>> q = k = v = torch.zeros(1, 2, 64, 16)
    >>> print(explain(q, k, v, Causal() & Window(8)))  # doctest: +ELLIPSIS
    64 queries × 64 keys, 2 heads: 968 visible pairs, 11.816% of all
      heads 0-1: Causal() & Window(size=8)
        Band: from 7 before to itself
    forward runs on tiled
      not dense: it is PyTorch's flash attention on CUDA; the inputs are on cpu
    ...

    Raises:
        ValueError: As `attend` does; a call that every backend refuses is explained, not refused.
    """
    _check_kinds(q, k, v, sinks, lengths)
    q, k, v = _autocast(q, k, v)
    _check_tensors(q, k, v, sinks, lengths)
    _check_settings(pattern, scale, dropout, softcap, backend)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    text = checked_text(pattern)
    softmax = Softmax(scale, float(softcap or 0.0), dropout, lengths=lengths)
    problem = problem_of(q, k, v, sinks, text, softmax)
    return Explanation(problem.plan, choose(problem, backend), choose(replace(problem, backward=True), backend))


def _check_kinds(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, lengths: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v), ("sinks", sinks), ("lengths", lengths)):
        if not isinstance(x, Tensor) and (x is not None or name in ("q", "k", "v")):
            raise ValueError(f"{name} is a {type(x).__name__}; give a torch.Tensor")


def _autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast asks for on their device, as scaled_dot_product_attention does."""
    if not torch._C._is_any_autocast_enabled():
        return q, k, v
    _check_kinds(q, k, v, None, None)
    device = q.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta tensors know no autocast
        return q, k, v
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in (q, k, v))


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, lengths: Tensor | None) -> None:
    dtype, device = q.dtype, q.device
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.is_nested or x.layout != torch.strided:
            layout, dense = ("nested", "to_padded_tensor(0.0)") if x.is_nested else (x.layout, "to_dense()")
            raise ValueError(f"{name} is {layout}; give a strided tensor: {name}.{dense}")
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; give [batch, heads, length, width]")
        if x.dtype != dtype or x.device != device:
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}, but q is {dtype} on {device}; "
                f"convert with {name}.to(q.device, q.dtype)"
            )
    (batch, heads, _, width), (k_batch, key_heads, keys, k_width), (*v_axes, _) = q.shape, k.shape, v.shape
    if k_batch != batch or v_axes != [k_batch, key_heads, keys] or k_width != width:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: all share the batch, "
            f"q and k the width, k and v the heads and the length"
        )
    if width == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; give a width of at least 1")
    if key_heads == 0 or heads % key_heads or heads == 0:
        raise ValueError(f"q has {heads} heads and k has {key_heads}; the key heads must divide the query heads")
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.device != q.device):
        raise ValueError(
            f"sinks has shape {tuple(sinks.shape)} on {sinks.device}; give one logit for each of the {heads} "
            f"query heads, on {q.device}"
        )
    if lengths is not None:
        _check_lengths(lengths, q)


def _check_lengths(lengths: Tensor, q: Tensor) -> None:
    if lengths.shape != q.shape[:1] or lengths.device != q.device or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"lengths is {lengths.dtype} of shape {tuple(lengths.shape)} on {lengths.device}; give an int32 or int64 "
            f"for each of the {q.shape[0]} sequences, on {q.device}"
        )


def _check_settings(
    pattern: Pattern, scale: float | None, dropout: float, softcap: float | None, backend: str | None
) -> None:
    if not isinstance(pattern, Pattern):
        raise ValueError(f"pattern is {pattern!r}; give a gossamer pattern such as Causal() & Window(128)")
    if scale is not None and not _holds(lambda x: -math.inf < x < math.inf, scale):
        raise ValueError(f"scale is {scale!r}; give a finite number, or None for 1/sqrt(width)")
    if not _holds(lambda x: 0.0 <= x < 1.0, dropout):
        raise ValueError(f"dropout is {dropout!r}; give a probability of at least 0 and below 1")
    if softcap is not None and not _holds(lambda x: 0.0 < x < math.inf, softcap):
        raise ValueError(f"softcap is {softcap!r}; give a positive number, or None for no cap")
    if backend is not None and not isinstance(backend, str):
        raise ValueError(f"backend is {backend!r}; give a backend's name, or None to let Gossamer choose")


def _holds(check: Callable[[float], bool], number: float) -> bool:
    """Whether it is a number of a float's size, of which the check holds.

    By arithmetic and comparisons alone: these a compiler can follow where the number is an argument of its graph.
    """
    try:
        return bool(check(number + 0.0))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
