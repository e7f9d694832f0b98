"""`attend`: softmax attention over the pairs that a pattern allows. What most people call. `explain` says how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .inputs import autocast, check_attention, check_kinds, check_settings, check_within
from .kernels import Choice, Softmax, choose
from .ops.attend import attend_eagerly
from .ops.choice import problem_of
from .patterns.base import Pattern
from .patterns.parse import checked_text
from .plan import Plan
from .repeats import leave_way, way_of


@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *,
    scale: float | None = ..., dropout: float = ..., sinks: Tensor | None = ..., softcap: float | None = ...,
    lengths: Tensor | None = ..., within: Tensor | None = ...,
    return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *,
    scale: float | None = ..., dropout: float = ..., sinks: Tensor | None = ..., softcap: float | None = ...,
    lengths: Tensor | None = ..., within: Tensor | None = ...,
    return_lse: Literal[True], backend: str | None = ...,
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
    within: Int[Tensor, "B 2"] | None = None,
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
        within: Where each sequence lies in its row, int32 [B, 2] on the device of q: it consists of positions
            `within[b, 0] … within[b, 1] - 1`. Keys outside do not exist and queries outside see nothing; positions
            stay what they are, cut to 0 … K. So a batch may be padded at either end.
        return_lse: Also return the natural log-sum-exp of the scores (sinks included), float32, or float64 for
            float64; it carries gradients.
        backend: Name of the backend to use; by default the first that accepts the problem.

    Raises:
        ValueError: Shapes, dtypes, devices or settings that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.
        RuntimeError: A tensor carries a tangent of forward-mode differentiation, which there is not.
    """
    check_settings(pattern, scale, dropout, softcap, backend)
    compiling = torch.compiler.is_compiling()
    text = pattern.spec if compiling else checked_text(pattern)
    scale, softcap = _number(scale), _number(softcap)
    q, k, v = autocast(q, k, v)
    asked = text, scale, softcap, backend, bool(return_lse)
    plain = sinks is None and lengths is None and within is None and not dropout and not compiling
    way = way_of(q, k, v, asked) if plain else None
    if way is not None:
        out, lse = way.take(q, k, v)
        return (out, lse) if return_lse else out
    _check_tensors(q, k, v, sinks, lengths, within)
    seed = torch.randint(2**62, (1,), device=q.device) if dropout > 0 else None
    settings = text, q.shape[-1] ** -0.5 if scale is None else scale, softcap or 0.0, float(dropout), backend
    out, lse = attend_eagerly(q, k, v, sinks, seed, lengths, within, *settings)
    if plain:
        leave_way(q, k, v, asked, *settings, lse=bool(return_lse))
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
    within: Int[Tensor, "B 2"] | None = None,
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
    q, k, v = autocast(q, k, v)
    _check_tensors(q, k, v, sinks, lengths, within)
    check_settings(pattern, scale, dropout, softcap, backend)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    text = checked_text(pattern)
    softmax = Softmax(scale, float(softcap or 0.0), dropout, lengths=lengths, within=within)
    problem = problem_of(q, k, v, sinks, text, softmax)
    return Explanation(problem.plan, choose(problem, backend), choose(replace(problem, backward=True), backend))


def _number(x: float | None) -> float | None:
    return None if x is None else float(x)


def _check_tensors(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, lengths: Tensor | None, within: Tensor | None
) -> None:
    check_kinds({"q": q, "k": k, "v": v}, {"sinks": sinks, "lengths": lengths, "within": within})
    check_attention(q, k, v)
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.device != q.device):
        raise ValueError(
            f"sinks has shape {tuple(sinks.shape)} on {sinks.device}; give one logit for each of the {q.shape[1]} "
            f"query heads, on {q.device}"
        )
    if lengths is not None:
        _check_lengths(lengths, q)
    if within is not None:
        check_within(within, q)
        if lengths is not None:
            raise ValueError(
                "lengths and within are both given; give within alone: [0, length] says what a length does"
            )


def _check_lengths(lengths: Tensor, q: Tensor) -> None:
    if lengths.shape != q.shape[:1] or lengths.device != q.device or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"lengths is {lengths.dtype} of shape {tuple(lengths.shape)} on {lengths.device}; give an int32 or int64 "
            f"for each of the {q.shape[0]} sequences, on {q.device}"
        )
