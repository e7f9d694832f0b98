"""The road of blocks that queries chose: which of its ways computes them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..indexed import Inputs, Returning
from .requirements import unfit


class Way(Protocol):
    """Kernels over chosen blocks, which are given what `unfit` has no objection to."""

    name: str

    def refuses(self, given: Inputs) -> str | None:
        """Why they cannot run on such inputs, or None where they can."""
        ...

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """As `Road` says."""
        ...

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor]:
        """As `Road` says."""
        ...


class Blocks:
    """Blocks meet all the queries that chose them at once, where others let each query read its own blocks anew."""

    name = "blocks"

    def __init__(self, *ways: Way) -> None:
        self._ways = ways

    def refuses(self, given: Inputs, *, backward: bool) -> str | None:
        """What none of the ways does, or each one's first reason."""
        reason = unfit(given)
        if reason is not None:
            return reason
        reasons = {way.name: way.refuses(given) for way in self._ways}
        if None in reasons.values():
            return None
        return "; ".join(f"{name}: {said}" for name, said in reasons.items())

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Road` says."""
        return self.way(given).forward(given)

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of q, k and v, as `Road` says."""
        return self.way(given).backward(given, come)

    def way(self, given: Inputs) -> Way:
        """The first that takes inputs which the road does not refuse."""
        return next(way for way in self._ways if way.refuses(given) is None)
