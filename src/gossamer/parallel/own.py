"""Attention to a shard's own tokens: alone while others are on their way, or together with what has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.layout import empty_beside
from .course import Course, OwnPass
from .keys import Come
from .softmax_part import Scores, SoftmaxPart


@dataclass(frozen=True, eq=False)
class Own:
    """One call, and the heads that it is for."""

    place: OwnPass
    softmax: SoftmaxPart

    @property
    def waits(self) -> bool:
        """Whether it attends to what has come too."""
        return self.place.part is not None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, come: Sequence[Come] = ()) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of its heads."""
        return self.softmax.forward(q[:, self.place.queries], *self._keys(k, v, come))

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, whole: tuple[Tensor, Tensor], come: Sequence[Come] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of its queries, keys and values; among the last two those of what has come, if it waited.

        `whole`: output and log-sum-exp of the whole softmax, of all heads.
        """
        grad_out, q, out, lse = (x[:, self.place.queries] for x in (grad_out, q, *whole))
        return self.softmax.backward(grad_out, q, *self._keys(k, v, come), out, lse)

    def _keys(self, k: Tensor, v: Tensor, come: Sequence[Come]) -> tuple[Tensor, Tensor]:
        own = k[:, self.place.keys], v[:, self.place.keys]
        return own if self.place.part is None else come[self.place.part].beside(*own)


def own_of(way: Course, scores: Scores, device: torch.device) -> list[Own]:
    """Every call of a course."""
    return [Own(place, SoftmaxPart.of(place.text, scores, device)) for place in way.passes]


def over_heads(found: Sequence[tuple[OwnPass, Tensor, Tensor]], q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exps of all heads, of calls that were for some each."""
    if len(found) == 1:
        return found[0][1:]
    out, lse = empty_beside(q, v.shape[-1]), found[0][2].new_empty(q.shape[:3])
    for place, some_out, some_lse in found:
        out[:, place.queries], lse[:, place.queries] = some_out, some_lse
    return out, lse


def gradients_over_heads(
    found: Sequence[tuple[OwnPass, Tensor, Tensor, Tensor]], q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of all heads' queries, keys and values; a key head that serves heads of two calls has both."""
    if len(found) == 1:
        return found[0][1:]
    dq, dk, dv = empty_beside(q, q.shape[-1]), torch.zeros_like(k), torch.zeros_like(v)
    for place, some_dq, some_dk, some_dv in found:
        dq[:, place.queries] = some_dq
        dk[:, place.keys] += some_dk
        dv[:, place.keys] += some_dv
    return dq, dk, dv
