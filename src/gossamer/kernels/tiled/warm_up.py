"""What an index learns from attention to all keys in plain PyTorch: a block of queries and one of keys at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..warm_up import Divergence, Lesson

PRODUCTS = {"cpu": 2**20, "cuda": 2**26}
"""About so many of all heads a block holds."""


class Tiled:
    """Runs on every device, in float64, float32, bfloat16 and float16."""

    name = "tiled"

    def refuses(self, lesson: Lesson) -> str | None:
        """Never: the operator takes only what it computes."""
        return None

    def forward(self, lesson: Lesson) -> Divergence:
        """The divergence of every query, as `Road` says: of probabilities p, scores I and the mass M of all p it is
        `sum(p log p) / M - log M - sum(p I) / M + log(sum(exp I))`."""
        shape, options = lesson.weights.shape[:2], {"dtype": lesson.wide, "device": lesson.q.device}
        mass, entropy, product = (torch.zeros(shape, **options) for _ in range(3))
        index_lse = torch.full(shape, -torch.inf, **options)
        for block in _blocks(lesson):
            rows, p, scores = block.rows, block.probabilities(), block.scores()
            mass[:, rows] += p.sum(-1)
            entropy[:, rows] += torch.xlogy(p, p).sum(-1)
            product[:, rows] += (p * scores.masked_fill(block.hidden, 0.0)).sum(-1)
            index_lse[:, rows] = torch.logaddexp(index_lse[:, rows], scores.logsumexp(-1))
        nothing = mass == 0
        total = mass.masked_fill(nothing, 1.0)
        rows = (entropy - product) / total - total.log() + index_lse
        return Divergence(rows.masked_fill(nothing, 0.0), mass, index_lse)

    def backward(self, lesson: Lesson, found: Divergence, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the index, as `Road` says: a score's is that of its softmax less its share of the mass."""
        q, k, weights = lesson.index_q, lesson.index_k, lesson.weights
        dq, dk = (torch.zeros(x.shape, dtype=lesson.wide, device=x.device) for x in (q, k))
        dweights = torch.zeros_like(weights)
        nothing = found.mass == 0
        total = found.mass.masked_fill(nothing, 1.0)
        index_lse = found.index_lse.masked_fill(nothing, torch.inf)
        grad = grad.to(lesson.wide).masked_fill(nothing, 0.0)
        for block in _blocks(lesson):
            rows, keys = block.rows, block.keys
            softmax = (block.scores() - index_lse[:, rows, None]).exp()
            slope = (softmax - block.probabilities() / total[:, rows, None]) * grad[:, rows, None]
            slope = slope.masked_fill(block.hidden, 0.0)[:, None]  # [B, 1, b, n]
            active = block.products > 0 if lesson.relu else None
            dweights[:, rows] += (slope * block.acted).sum(-1).transpose(1, 2)
            of_products = slope * weights[:, rows].transpose(1, 2)[..., None]
            of_products = of_products if active is None else of_products * active  # [B, J, b, n]
            of_products = of_products.to(q.dtype)
            dq[:, :, rows] += _product(of_products, k[:, None, keys].expand(-1, q.shape[1], -1, -1), lesson.wide)
            every = of_products.flatten(1, 2).mT, q[:, :, rows].flatten(1, 2)
            dk[:, keys] += _product(every[0][:, None], every[1][:, None], lesson.wide)[:, 0]
        return dq.to(q.dtype), dk.to(k.dtype), dweights


TILED_WARM_UP = Tiled()


@dataclass(frozen=True, eq=False)
class _Block:
    """Some queries and some keys."""

    lesson: Lesson
    rows: slice
    keys: slice
    products: Tensor
    """[B, J, b, n] of the index."""
    hidden: Tensor
    """bool [B or 1, b, n]"""

    @classmethod
    def of(cls, lesson: Lesson, rows: slice, keys: slice) -> _Block:
        q, k = lesson.index_q[:, :, rows], lesson.index_k[:, None, keys]
        products = _product(q, k.expand(-1, q.shape[1], -1, -1).mT, lesson.wide)
        return cls(lesson, rows, keys, products, lesson.hidden(rows, keys))

    @property
    def acted(self) -> Tensor:
        """[B, J, b, n]: the products as the weights meet them."""
        return self.products.relu() if self.lesson.relu else self.products

    def scores(self) -> Tensor:
        """[B, b, n]: what the index says; minus infinity of what is not seen."""
        weights = self.lesson.weights[:, self.rows].transpose(1, 2)[..., None]
        return (self.acted * weights).sum(1).masked_fill(self.hidden, -torch.inf)

    def probabilities(self) -> Tensor:
        """[B, b, n]: those of all heads together."""
        lesson, rows = self.lesson, self.rows
        batch, groups, _, width = lesson.k.shape
        q = lesson.q[:, :, rows]
        shape = batch, groups, -1, width
        products = _product(q.reshape(shape), lesson.k[:, :, self.keys].mT, lesson.wide)
        lse = lesson.lse[:, :, rows, None]
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # who sees nothing looks nowhere
        scores = products.view(*q.shape[:3], -1).mul_(lesson.scale).sub_(lse)
        return scores.exp_().sum(1).masked_fill_(self.hidden, 0.0)


def _blocks(lesson: Lesson) -> Iterator[_Block]:
    """All that hold a pair of which one may see the other."""
    batch, queries, keys = *lesson.weights.shape[:2], lesson.index_k.shape[1]
    each = batch * max(lesson.q.shape[1], lesson.index_q.shape[1])
    edge = max(1, int((PRODUCTS["cuda" if lesson.q.is_cuda else "cpu"] / max(each, 1)) ** 0.5))
    for row in range(0, queries, edge):
        rows = slice(row, min(row + edge, queries))
        for key in range(0, min(keys, keys - queries + rows.stop), edge):
            yield _Block.of(lesson, rows, slice(key, min(key + edge, keys)))


def _product(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """[B, H, m, n] = a [B, H, m, d] @ b [B, H, d, n] in `wide`; narrow factors are not made wide where the device
    adds up their products in float32."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        batch = a.shape[:2]
        return torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=wide).unflatten(0, batch)
    return a.to(wide) @ b.to(wide)
