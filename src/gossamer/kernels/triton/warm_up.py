"""The portable GPU road of an index's lesson: a part of the queries at a time, over all keys that they see.

For a part, kernels write the index's scores and the heads' probabilities, each a sum over heads, so that what lies in
memory is a number for each pair and not for each head. What the gradients make of pairs they make in registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from ..top_keys import Indexed
from ..warm_up import Divergence, Lesson
from .backend import without_gpu
from .configs import WIDEST, index_config

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_PAIRS = 2**25
"""Whose scores are held at a time, if one query has not more."""


class Triton:
    """Runs on any GPU that Triton compiles for, in float32, bfloat16 and float16."""

    name = "triton"

    def refuses(self, lesson: Lesson) -> str | None:
        """The first thing that these kernels do not do."""
        (_, heads, _, width), dtype = lesson.index_q.shape, lesson.index_q.dtype
        if lesson.q.dtype not in DTYPES or dtype not in DTYPES:
            return f"queries are {lesson.q.dtype} and {dtype}; it computes float32, bfloat16 and float16"
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        if width > (widest := 128 if dtype == torch.float32 else WIDEST):
            return f"index heads are {width} wide; of {dtype} it computes {widest} at most"
        if heads > (most := index_config(dtype, width, heads).queries):
            return f"there are {heads} index heads; of this width and dtype it sums {most} at most"
        return without_gpu(lesson.q.device)

    def forward(self, lesson: Lesson) -> Divergence:
        """The divergence of every query, as `Road` says."""
        rows, mass, index_lse = (torch.zeros_like(lesson.weights[..., 0]) for _ in range(3))
        for part in _parts(lesson):
            p, scores = part.probabilities(), part.scores()
            total, lse = p.sum(-1), scores.logsumexp(-1)
            share = p / total.masked_fill(total == 0, 1.0)[..., None]
            told = torch.xlogy(share, share) - share * scores.masked_fill(part.hidden, 0.0)
            rows[:, part.rows] = torch.where(total > 0, told.sum(-1) + lse, 0.0)
            mass[:, part.rows], index_lse[:, part.rows] = total, lse
        return Divergence(rows, mass, index_lse)

    def backward(self, lesson: Lesson, found: Divergence, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the index, as `Road` says."""
        from .warm_up_tiles import learn

        dq, dweights = torch.zeros_like(lesson.index_q), torch.zeros_like(lesson.weights)
        dk = torch.zeros(lesson.index_k.shape, dtype=torch.float32, device=grad.device)
        nothing = found.mass == 0
        total, index_lse = found.mass.masked_fill(nothing, 1.0), found.index_lse.masked_fill(nothing, torch.inf)
        grad = grad.to(torch.float32).masked_fill(nothing, 0.0)
        for part in _parts(lesson):
            rows = part.rows
            slope = (part.scores() - index_lse[:, rows, None]).exp_()
            slope = (slope - part.probabilities() / total[:, rows, None]) * grad[:, rows, None]
            slope = slope.masked_fill_(part.hidden, 0.0)
            learn(part.index, slope, dq[:, :, rows], dk[:, : part.keys], dweights[:, rows])
        return dq, dk.to(lesson.index_k.dtype), dweights


TRITON_WARM_UP = Triton()


@dataclass(frozen=True, eq=False)
class _Part:
    """Some queries, and the first keys, behind which they see nothing."""

    lesson: Lesson
    rows: slice
    keys: int
    index: Indexed
    hidden: Tensor
    """bool [B or 1, b, n]"""

    def scores(self) -> Tensor:
        """float32 [B, b, n]: what the index says; minus infinity of what is not seen."""
        from .top_keys_scores import scores_of

        return scores_of(self.index).masked_fill_(self.hidden, -torch.inf)

    def probabilities(self) -> Tensor:
        """float32 [B, b, n]: those of all heads together."""
        from .warm_up_tiles import probabilities

        lesson = self.lesson
        q, lse = lesson.q[:, :, self.rows], lesson.lse[:, :, self.rows]
        found = probabilities(q, lesson.k[:, :, : self.keys], lse, self.index.visible, lesson.scale)
        return found.masked_fill_(self.hidden, 0.0)


def _parts(lesson: Lesson) -> Iterator[_Part]:
    """All queries that see something."""
    batch, queries, keys = *lesson.weights.shape[:2], lesson.index_k.shape[1]
    every = Indexed(lesson.index_q, lesson.index_k, lesson.weights, lesson.visible, lesson.relu)
    step = max(1, MOST_PAIRS // max(batch * keys, 1))
    for first in range(0, queries, step):
        rows = slice(first, min(first + step, queries))
        seen = keys - queries + rows.stop
        if seen > 0 and batch:
            index = every.part(slice(0, batch), rows, seen)
            yield _Part(lesson, rows, seen, index, lesson.hidden(rows, slice(0, seen)))
