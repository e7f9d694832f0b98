"""What goes from the forward to the backward kernels, and between these."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gradients:
    """What the forward has left, what comes back, and what the backward of the queries leaves to that of the keys."""

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None
    deltas: Tensor
