"""The gate before the clock: only an attention that computes what it claims is timed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..patterns import Pattern
from ..reference import reference, visible

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
Named = Mapping[str, Tensor]

TOLERANCES = {"output": 2, "dq": 3, "dk": 3, "dv": 3}
"""Allowed error against the float64 oracle, in units of the error of plain attention in the same dtype."""

LAST = 64
"""Queries at the end of a full-size problem on which it is checked."""

LAST_TOLERANCE = 4
"""Allowed error there in the mean square, in units of plain attention's own plus that of rounding once."""


@dataclass(frozen=True)
class Trial:
    """The problem on which an attention is judged: small enough for a dense float64 oracle."""

    length: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device
    seed: int = 0
    key_heads: int | None = None
    """As many as query heads by default."""

    def draw(self) -> list[Tensor]:
        """Random q, k, v and gradient of the output, [1, H, N, D] each."""
        generator = torch.Generator().manual_seed(self.seed)
        groups = self.key_heads or self.heads
        shapes = [(1, heads, self.length, self.width) for heads in (self.heads, groups, groups, self.heads)]
        return [torch.randn(shape, generator=generator).to(self.device, self.dtype) for shape in shapes]


def fault(attention: AttentionFunction, pattern: Pattern, trial: Trial) -> str | None:
    """Why `attention` is not softmax attention over exactly `pattern`; None where it is.

    Two checks: the exact set of visible pairs, which no tolerance blurs; and the error of the output and of
    the three gradients against a float64 oracle, beside the error of plain attention in the same dtype.
    """
    mask = visible(pattern, trial.length, trial.length, trial.device)
    return wrong_pairs(attention, mask, trial) or _wrong_numbers(attention, pattern, mask, trial)


def wrong_pairs(attention: AttentionFunction, mask: Bool[Tensor, "*H Q N"], trial: Trial) -> str | None:
    """The first of the pairs that `attention` sees or misses against `mask`, and their number; None where none is."""
    seen = visible_pairs(attention, trial)
    wrong = seen != mask
    if not wrong.any():
        return None
    head, query, key = wrong.nonzero()[0].tolist()
    verb = "sees" if seen[head, query, key] else "misses"
    return f"{int(wrong.sum())} wrong pairs; first: head {head}, query {query} {verb} key {key}"


def visible_pairs(attention: AttentionFunction, trial: Trial) -> Bool[Tensor, "H Q N"]:
    """Which keys each query gives weight to: zero scores, and slices of the identity as values, show it."""
    n, width = trial.length, trial.width
    q, k, *_ = trial.draw()
    identity = torch.eye(n, math.ceil(n / width) * width, device=trial.device, dtype=trial.dtype)
    slices = [identity[:, at : at + width].expand_as(k).contiguous() for at in range(0, n, width)]
    # Leaves with gradients, as in training, so that what compiles compiles once for both checks.
    outs = [attention(*(x.detach().requires_grad_() for x in (q * 0, k, v))).detach() for v in slices]
    return torch.cat(outs, dim=-1)[0, :, :, :n] > 0


def _wrong_numbers(attention: AttentionFunction, pattern: Pattern, mask: Tensor, trial: Trial) -> str | None:
    *inputs, dout = trial.draw()
    exact_inputs = [x.double() for x in inputs]  # so that the oracle's gradients are not rounded either
    exact = _with_gradients(lambda q, k, v: reference(q, k, v, pattern)[0], exact_inputs, dout)
    plain = _with_gradients(lambda q, k, v: plain_attention(q, k, v, mask), inputs, dout)
    ours = _with_gradients(attention, inputs, dout)
    for name, times in TOLERANCES.items():
        error, usual = _largest(ours[name] - exact[name]), _largest(plain[name] - exact[name])
        limit = times * usual + torch.finfo(trial.dtype).eps * _largest(exact[name])
        if not error <= limit:
            return f"error of {name} is {error:.2e} against the float64 oracle, allowed are {limit:.2e}"
    return None


def _with_gradients(attention: AttentionFunction, inputs: list[Tensor], dout: Tensor) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    results = (out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype)))
    return {name: x.double() for name, x in zip(TOLERANCES, results, strict=True)}


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def last_rows_fault(found: Named, problem: list[Tensor], pattern: Pattern) -> str | None:
    """Why a result of any size is wrong, judged by its last rows; None where they are right.

    `found` holds the whole output, or gradients, of causal attention whose last query stands at the last key;
    `problem` is q, k, v and the output's gradient. The first and the last key head of the last sequence are computed
    again densely, for the last queries only: no later query exists, so they decide the gradients of the last keys, too.
    """
    for name, x in found.items():
        if not x.isfinite().all():
            return f"{name} is not finite everywhere"
    groups = problem[1].shape[1]
    for group in sorted({0, groups - 1}):
        wrong = _group_fault(found, problem, pattern, group)
        if wrong is not None:
            return f"{wrong} (key head {group}, last {LAST} rows)"
    return None


def _group_fault(found: Named, problem: list[Tensor], pattern: Pattern, group: int) -> str | None:
    q, k, v, dout = problem
    count, keys, each = min(LAST, q.shape[2]), k.shape[2], q.shape[1] // k.shape[1]
    last, own, shared = slice(-count, None), slice(group * each, (group + 1) * each), slice(group, group + 1)
    seen = [_seen(pattern.for_head(head), range(keys - count, keys), keys) for head in range(own.start, own.stop)]
    mask = torch.stack(seen).to(q.device)
    inputs, dout = [q[-1:, own, last], k[-1:, shared], v[-1:, shared]], dout[-1:, own, last]

    def dense(dtype: torch.dtype) -> dict[str, Tensor]:
        whole = _with_gradients(partial(plain_attention, mask=mask), [x.to(dtype) for x in inputs], dout)
        return {name: x[:, :, last] for name, x in whole.items()}

    exact, plain = dense(torch.float64), dense(q.dtype)
    for name, x in found.items():
        ours = x[-1:, own if name in ("output", "dq") else shared, last].double()
        error, usual = ((y - exact[name]).norm() for y in (ours, plain[name]))
        limit = LAST_TOLERANCE * (usual + torch.finfo(q.dtype).eps / 2 * exact[name].norm())
        if not error <= limit:
            return f"error of {name} is {error:.2e} against the float64 oracle, allowed are {limit:.2e}"
    return None


def _seen(pattern: Pattern, rows: range, keys: int) -> Bool[Tensor, "Q K"]:
    queries, every = np.arange(rows.start, rows.stop)[:, None], np.arange(keys)[None]
    return torch.from_numpy(np.broadcast_to(pattern.allows(queries, every), (len(rows), keys)).copy())


def plain_attention(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K D"],
    mask: Bool[Tensor, "*H Q K"],
) -> Float[Tensor, "B H Q D"]:
    """Softmax attention as textbooks write it: the whole matrix of scores is made, masked and normalised."""
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT  # [B, H, Q, K]
    return torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1) @ v
