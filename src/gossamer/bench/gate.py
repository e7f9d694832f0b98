"""The gate before the clock: only an attention that computes what it claims is timed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..patterns import Pattern
from ..reference import reference, visible

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

TOLERANCES = {"output": 2, "dq": 3, "dk": 3, "dv": 3}
"""Allowed error against the float64 oracle, in units of the error of plain attention in the same dtype."""


@dataclass(frozen=True)
class Trial:
    """The problem on which an attention is judged: small enough for a dense float64 oracle."""

    length: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device
    seed: int = 0

    def draw(self, count: int) -> list[Tensor]:
        """`count` random tensors [1, H, N, D]."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (1, self.heads, self.length, self.width)
        return [torch.randn(shape, generator=generator).to(self.device, self.dtype) for _ in range(count)]


def fault(attention: AttentionFunction, pattern: Pattern, trial: Trial) -> str | None:
    """Why `attention` is not softmax attention over exactly `pattern`; None where it is.

    Two checks: the exact set of visible pairs, which no tolerance blurs; and the error of the output and of
    the three gradients against a float64 oracle, beside the error of plain attention in the same dtype.
    """
    mask = visible(pattern, trial.length, trial.length, trial.device)
    return _wrong_pairs(attention, mask, trial) or _wrong_numbers(attention, pattern, mask, trial)


def _wrong_pairs(attention: AttentionFunction, mask: Bool[Tensor, "*H N N"], trial: Trial) -> str | None:
    seen = visible_pairs(attention, trial)
    wrong = seen != mask
    if not wrong.any():
        return None
    head, query, key = wrong.nonzero()[0].tolist()
    verb = "sees" if seen[head, query, key] else "misses"
    return f"{int(wrong.sum())} wrong pairs; first: head {head}, query {query} {verb} key {key}"


def visible_pairs(attention: AttentionFunction, trial: Trial) -> Bool[Tensor, "H N N"]:
    """Which keys each query gives weight to: zero scores, and slices of the identity as values, show it."""
    n, width = trial.length, trial.width
    q, k = trial.draw(2)
    identity = torch.eye(n, math.ceil(n / width) * width, device=trial.device, dtype=trial.dtype)
    slices = [identity[:, at : at + width].expand_as(k) for at in range(0, n, width)]
    with torch.no_grad():
        weights = torch.cat([attention(q * 0, k, v.contiguous()) for v in slices], dim=-1)  # [1, H, N, N+]
    return weights[0, :, :, :n] > 0


def _wrong_numbers(attention: AttentionFunction, pattern: Pattern, mask: Tensor, trial: Trial) -> str | None:
    *inputs, dout = trial.draw(4)
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


def plain_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H N D"],
    v: Float[Tensor, "B H N D"],
    mask: Bool[Tensor, "*H N N"],
) -> Float[Tensor, "B H N D"]:
    """Softmax attention as textbooks write it: the whole matrix of scores is made, masked and normalised."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT  # [B, H, N, N]
    return torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1) @ v
