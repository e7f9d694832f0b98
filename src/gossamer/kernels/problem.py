"""What a backend is asked to compute, and what every backend answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..plan import Plan


@dataclass(frozen=True)
class Layout:
    """Which blocks of `size` × `size` pairs are visible, as a tensor on the device says."""

    visible: Tensor
    """bool [B or 1, H or 1, query blocks, key blocks]."""
    size: int


@dataclass(frozen=True)
class Softmax:
    """What happens between scores and probabilities."""

    scale: float
    softcap: float = 0.0
    """Scores become `softcap · tanh(score / softcap)`; 0 leaves them as they are."""
    dropout: float = 0.0
    seed: Tensor | None = None
    """int64 [1], the dropout mask's seed; None where nothing is dropped."""
    lengths: Tensor | None = None
    """int32 or int64 [B]: in sequence `b` no key stands at or beyond `lengths[b]`, and the last query stands at the
    last key before it. None where every key is there. Read on the device alone."""
    within: Tensor | None = None
    """int32 [B, 2]: sequence `b` consists of positions `within[b, 0] … within[b, 1] - 1`, where they lie in 0 … K - 1:
    no key stands elsewhere, and a query elsewhere sees nothing. Dense, and read on the device alone."""
    runs: tuple[Tensor, Tensor] | None = None
    """(start, stop), int32 [B, Q] or [1, Q]: query `i` sees keys `start[b, i] … stop[b, i] - 1` of a plan that shows
    everything. Neither falls from a query to the next. Read on the device alone."""
    blocks: Layout | None = None
    """What of a plan that shows everything is visible, in blocks. Read on the device alone; joins with `within`."""

    @property
    def is_live(self) -> bool:
        """Whether what queries see follows from more than the plan and the lengths."""
        return self.within is not None or self.runs is not None or self.blocks is not None


@dataclass(frozen=True)
class Problem:
    """Everything that decides whether a backend can run, and nothing that needs the data."""

    plan: Plan
    device: torch.device
    dtype: torch.dtype
    batch: int
    key_heads: int
    width: int
    value_width: int
    softcap: float
    dropout: float
    has_sinks: bool
    lengths: bool = False
    """Whether each sequence ends at a length that the device alone knows."""
    within: bool = False
    """Whether each sequence lies between positions that the device alone knows."""
    runs: bool = False
    """Whether each query sees a run of keys that the device alone knows."""
    block: int = 0
    """Edge of the blocks of which the device alone knows which are visible; 0 without such."""
    backward: bool = False
    """Whether gradients are asked for; forward and backward of a call are picked apart, and may differ."""
    scale: float = 1.0


class Backend(Protocol):
    """One way to compute a plan: softmax attention over exactly the plan's pairs, forward and backward."""

    name: str

    def refuses(self, problem: Problem) -> str | None:
        """Why the backend cannot run the problem, for a person to read, or None where it can."""
        ...

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor]:
        """(out [B, H, Q, Dv] in the input's dtype, natural log-sum-exp [B, H, Q] in float32 or float64)."""
        ...

    def backward(
        self, saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Gradients of q, k, v and the sinks."""
        ...


@dataclass(frozen=True)
class Saved:
    """What the backward needs of the forward."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    sinks: Tensor | None


Again = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None] | None]
"""The forward of q, k and v, without the log-sum-exp where nobody wants it; None where these tensors are less aligned
than the first were, or somebody watches launches."""


@runtime_checkable
class Repeating(Protocol):
    """A backend that can leave out, for a second call of a kind, all that the first one settled."""

    def again(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan, softmax: Softmax, *, lse: bool) -> Again | None:
        """The forward of a plain call that was made, for tensors of the same shapes, strides, dtypes and device.

        `lse` says whether the log-sum-exp is wanted.
        """
        ...


class Unsupported(ValueError):
    """No backend accepts the problem; the message gives each one's reason."""
