"""What a road is asked to compute at chosen keys besides attention: an index's scores, and where heads look.

Keys stand at places, [B, Q, n] in int32, -1 where none stands. Each of a query's keys stands at one place alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Index:
    """An index whose scores are `sum_j weights[j] · act(q[j] · k)`."""

    q: Tensor
    """[B, J, Q, D]"""
    k: Tensor
    """[B, K, D]"""
    weights: Tensor
    """[B, Q, J] in float32, or float64 of float64"""
    places: Tensor
    relu: bool

    @property
    def wide(self) -> torch.dtype:
        """What scores are computed in."""
        return torch.promote_types(self.q.dtype, torch.float32)


class Heads(NamedTuple):
    """Attention whose probabilities are `exp(scale · q · k - lse)`."""

    q: Tensor
    """[B, H, Q, D]"""
    k: Tensor
    """[B, G, K, D]"""
    lse: Tensor
    """[B, H, Q]"""
    places: Tensor
    scale: float


class Road(Protocol):
    """One way to compute an index's scores."""

    name: str

    def refuses(self, q: Tensor) -> str | None:
        """Why it cannot run on such queries, or None where it can."""
        ...

    def scores(self, index: Index) -> Tensor:
        """[B, Q, n] in `wide`: minus infinity where no key stands."""
        ...

    def scores_backward(self, index: Index, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and the weights from that of the scores, whatever that is where no key stands."""
        ...


class MassRoad(Protocol):
    """One way to tell where heads look."""

    name: str

    def refuses_mass(self, heads: Heads) -> str | None:
        """Why it cannot tell of such heads, or None where it can."""
        ...

    def mass(self, heads: Heads) -> Tensor:
        """[B, Q, n] in float32, or float64 of float64: all heads' probabilities summed; zero where no key stands."""
        ...
