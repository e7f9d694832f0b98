"""What a road for indexed attention is asked to compute: each query's softmax over the keys that were chosen for it.

A key that is chosen twice counts once, and a number that is no key's chooses nothing. Whatever lies in keys that
nobody chose, or in queries that see nothing, changes no result and no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..selectors.selection import Selection
from .problem import Softmax


@dataclass(frozen=True, eq=False)
class Inputs:
    """What attention reads: q [B, H, Q, D], k [B, G, K, D], v [B, G, K, Dv], a logit a head, and who sees whom."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    """None where values are the leading columns of the keys, whose gradient then is that of both."""
    value_width: int
    sinks: Tensor | None
    selection: Selection
    softmax: Softmax

    @property
    def values(self) -> Tensor:
        """[B, G, K, Dv]"""
        return self.k[..., : self.value_width] if self.v is None else self.v

    @property
    def wide(self) -> torch.dtype:
        """What sums, exponentials and the log-sum-exp are kept in."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def extra(self) -> str | None:
        """What there is that kernels for a mere softmax of scaled products do not do."""
        if self.selection.mask is not None:
            return "it takes no mask"
        if self.softmax.softcap or self.softmax.dropout:
            return "it has no softcap and no dropout"
        if self.softmax.scale <= 0:
            return f"the scale is {self.softmax.scale}; it takes a positive one"
        return None

    @property
    def position(self) -> int:
        """Where query 0 stands among the keys."""
        return self.k.shape[2] - self.q.shape[2]


class Returning(NamedTuple):
    """What the backward is given besides the inputs."""

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None
    """Zero wherever the log-sum-exp is minus infinity."""


class Road(Protocol):
    """One way to compute indexed attention, forward and backward."""

    name: str

    def refuses(self, given: Inputs, *, backward: bool) -> str | None:
        """Why it cannot run on such inputs, whose numbers are not looked at, or None where it can."""
        ...

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(out [B, H, Q, Dv] in the dtype of `q`, natural log-sum-exp [B, H, Q] in `wide`, sinks included).

        Zeros for a query that sees nothing, and minus infinity, or the sink where there is one.
        """
        ...

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of q, k and v, of which the last is None where there is no `v`."""
        ...
