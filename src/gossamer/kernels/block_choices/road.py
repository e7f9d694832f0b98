"""The road of blocks that queries chose: which of its ways computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..indexed import Inputs, Returning
from ..layout import empty_beside, empty_by_token
from .requirements import ALIGNED, queries_at_once, unfit


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
        way, q = self.way(given), given.q
        if q.shape[2] <= queries_at_once(given):
            return way.forward(given)
        out, lse = empty_by_token(q, given.value_width), q.new_empty(q.shape[:3], dtype=given.wide)
        for rows, run in runs_of(given):
            out[:, :, rows], lse[:, :, rows] = way.forward(run)
        return out, lse

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of q, k and v, as `Road` says."""
        way, q = self.way(given), given.q
        if q.shape[2] <= queries_at_once(given):
            return way.backward(given, come)
        dq = empty_beside(q, q.shape[3])
        dk, dv = (torch.zeros_like(x, dtype=given.wide) for x in (given.k, given.values))
        for rows, run in runs_of(given):
            here = Returning(*(None if x is None else x[:, :, rows] for x in come))  # type: ignore[arg-type]
            dq[:, :, rows], of_keys, of_values = way.backward(run, here)
            dk[:, :, : run.k.shape[2]] += of_keys
            dv[:, :, : run.k.shape[2]] += of_values
        return dq, dk.to(given.k.dtype), dv.to(given.values.dtype)

    def way(self, given: Inputs) -> Way:
        """The first that takes inputs which the road does not refuse."""
        return next(way for way in self._ways if way.refuses(given) is None)


def runs_of(given: Inputs) -> Iterator[tuple[slice, Inputs]]:
    """Neighbouring queries whose pieces are in memory together, with the keys up to the last of them."""
    queries, keys = given.q.shape[2], given.k.shape[2]
    step = queries_at_once(given)
    step = -(-queries // -(-queries // step))  # runs of about one length
    step += -step % ALIGNED if step > ALIGNED else 0
    for first in range(0, queries, step):
        rows = slice(first, min(first + step, queries))
        seen = slice(keys - queries + rows.stop if given.selection.causal else keys)
        selection = replace(given.selection, indices=given.selection.indices[:, :, rows])
        k, v = given.k[:, :, seen], given.values[:, :, seen]
        yield rows, replace(given, q=given.q[:, :, rows], k=k, v=v, selection=selection)
