"""What right means for the choice of the best keys, on any device, in any dtype and by any road."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.indexed import top_keys
from gossamer.selectors.quantized import quantized

Select = Callable[[Tensor, Tensor, int], Tensor]

SPECIAL = (0.0, -0.0, 1.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, -3e38, torch.inf, -torch.inf, torch.nan)
"""Scores that are hard to order; two of them are equal, and so are both zeros."""


def scores_of(kind: str, rows: int, keys: int, seed: int = 0) -> Tensor:
    """float32 [rows, keys]: scores of a kind that some implementation somewhere has stumbled over."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, keys, generator=generator)
    some = torch.randint(0, 5, (rows, keys), generator=generator)
    return {
        "normal": lambda: normal,
        "many ties": lambda: some.float(),
        "all equal": lambda: torch.full_like(normal, 3.5),
        "zeros of relu": lambda: normal.sub(0.5).relu(),
        "zeros of both signs": lambda: torch.where(some > 2, 0.0, -0.0),
        "hidden": lambda: normal.masked_fill(some > 1, -torch.inf),
        "nothing": lambda: torch.full_like(normal, -torch.inf),
        "not numbers": lambda: normal.masked_fill(some > 2, torch.nan),
        "special": lambda: torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), normal.shape, generator=generator)],
        "large": lambda: normal * 1e38,
        "close": lambda: 1000.0 + normal * 1e-3,
        "whole numbers": lambda: normal.mul(16.0).round(),
        "next to one another": lambda: (normal.argsort(-1).int() + 0x44000000).view(torch.float32),
        "negative": lambda: -normal.abs() - 1.0,
        "rising": lambda: torch.arange(keys).float().expand(rows, keys),
        "falling": lambda: -torch.arange(keys).float().expand(rows, keys),
        "best where samples are not": lambda: normal + 100.0 * (torch.arange(keys) % 64 > 32),
        "best where samples are": lambda: normal + 100.0 * (torch.arange(keys) % 64 == 0),
    }[kind]()


KINDS = (
    "normal", "many ties", "all equal", "zeros of relu", "zeros of both signs", "hidden", "nothing", "not numbers",
    "special", "large", "close", "negative", "rising", "falling", "best where samples are not",
    "best where samples are",
)  # fmt: skip


def definition(scores: Tensor, visible: list[int], count: int) -> Tensor:
    """int32 [rows, count] by Python's sort: the largest first, of equal ones the first, then in order of position."""
    found = []
    for row, seen in zip(scores.tolist(), visible, strict=True):
        real = [key for key in range(seen) if row[key] > -torch.inf]
        best = sorted(real, key=lambda key: (-row[key], key))[:count]
        found.append(sorted(best) + [-1] * (count - len(best)))
    return torch.tensor(found, dtype=torch.int32)


def check_selection(
    select: Select, kind: str, *, rows: int = 7, keys: int = 200, count: int = 20, device: str = "cpu"
) -> None:
    """The very keys of the definition, of rows that see from nothing to all; what is not visible is poison."""
    scores = scores_of(kind, rows, keys)
    visible = [0, 1, min(count, keys), *(keys - 13 * row for row in range(rows - 3))]
    visible = [min(max(some, 0), keys) for some in visible]
    right = definition(scores, visible, count)
    poison = torch.where(torch.arange(keys) % 2 == 0, torch.nan, torch.inf)
    hidden = torch.arange(keys) >= torch.tensor(visible)[:, None]
    given = torch.where(hidden, poison, scores).to(device)
    found = select(given, torch.tensor(visible, dtype=torch.int32, device=device), count)
    assert found.dtype == torch.int32 and torch.equal(found.cpu(), right), (found.cpu() != right).nonzero()


@dataclass(frozen=True)
class Case:
    """Sizes of a problem whose features are small integers, so that scores are exact in every dtype, and often tie."""

    queries: int = 70
    keys: int = 70
    heads: int = 3
    width: int = 16
    count: int = 8
    batch: int = 2
    relu: bool = True
    causal: bool = True
    visible: bool = False


CASES = {
    "square": Case(),
    "as many keys as are chosen": Case(queries=20, keys=20, count=20),
    "more chosen than there are": Case(queries=9, keys=11, count=16),
    "the last queries": Case(queries=5, keys=150),
    "one query": Case(queries=1, keys=300, count=17),
    "queries before the first key": Case(queries=30, keys=11, count=4),
    "one head": Case(heads=1, width=8),
    "many heads": Case(heads=33, width=40, queries=10),
    "no relu": Case(relu=False),
    "both ways": Case(causal=False),
    "visible": Case(visible=True),
    "visible both ways": Case(visible=True, causal=False),
    "one chosen": Case(count=1),
    "nothing there": Case(queries=3, keys=0),
    "nobody asks": Case(queries=0),
}


def draw(
    case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(q, k, weights, visible)"""
    generator = torch.Generator().manual_seed(seed)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).to(device, dtype)

    q = integers(case.batch, case.queries, case.heads, case.width).transpose(1, 2)
    k = integers(case.batch, case.keys, case.width)
    weights = integers(case.batch, case.queries, case.heads)
    visible = torch.randint(-1, case.keys + 2, (case.batch, case.queries), generator=generator).to(device)
    return q, k, weights.to(torch.promote_types(dtype, torch.float32)), visible if case.visible else None


def by_definition(case: Case, q: Tensor, k: Tensor, weights: Tensor, visible: Tensor | None) -> Tensor:
    """The same by dense scores in float64 and Python's sort."""
    products = torch.einsum("bjqd,bkd->bjqk", q.double(), k.double()).cpu()
    products = products.clamp(min=0.0) if case.relu else products
    scores = torch.einsum("bqj,bjqk->bqk", weights.double().cpu(), products)
    seen = torch.full((case.batch, case.queries), case.keys)
    if case.causal:
        seen = torch.minimum(seen, case.keys - case.queries + 1 + torch.arange(case.queries))
    if visible is not None:
        seen = torch.minimum(seen, visible.cpu())
    seen = seen.clamp(0, case.keys).flatten().tolist()
    return definition(scores.flatten(0, 1), seen, case.count).view(case.batch, case.queries, case.count)


def check_definition(
    case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu", backend: str | None = None, **settings: str
) -> None:
    """The very keys of the definition."""
    q, k, weights, visible = draw(case, dtype, device)
    options = {"relu": case.relu, "causal": case.causal, "visible": visible, "backend": backend, **settings}
    found = top_keys(q, k, weights, case.count, **options)
    right = by_definition(case, q, k, weights, visible)
    assert found.dtype == torch.int32 and torch.equal(found.cpu(), right.to(torch.int32))


def check_normal(
    case: Case, dtype: torch.dtype, device: str = "cpu", backend: str | None = None, precision: str = "as given"
) -> None:
    """Of normal features, no key is left out whose score is above that of a taken one by more than rounding."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(case.batch, case.heads, case.queries, case.width, generator=generator).to(device, dtype)
    k = torch.randn(case.batch, case.keys, case.width, generator=generator).to(device, dtype)
    weights = torch.randn(case.batch, case.queries, case.heads, generator=generator).to(device)
    found = top_keys(q, k, weights, case.count, backend=backend, precision=precision).long()
    if precision != "as given":
        rounded = (quantized(x, precision) for x in (q, k))
        q, k = (values.double() * scale.double()[..., None] for values, scale in rounded)
    products = torch.einsum("bjqd,bkd->bjqk", q.double(), k.double()).clamp(min=0.0)
    scores = torch.einsum("bqj,bjqk->bqk", weights.double(), products)
    size = torch.einsum("bqj,bjqk->bqk", weights.double().abs(), products).amax()
    future = torch.ones(case.queries, case.keys, dtype=torch.bool, device=device).triu(case.keys - case.queries + 1)
    scores = scores.masked_fill(future, -torch.inf)
    taken = torch.zeros(*scores.shape[:2], case.keys + 1, dtype=torch.bool, device=device)
    taken = taken.scatter_(-1, found % (case.keys + 1), True)[..., :-1]
    assert torch.equal(taken.sum(-1), (scores > -torch.inf).sum(-1).clamp(max=case.count))
    worst, best_left = scores.masked_fill(~taken, torch.inf).amin(-1), scores.masked_fill(taken, -torch.inf).amax(-1)
    rounding = 2**-12 if precision != "as given" else 16 * torch.finfo(torch.float32).eps
    assert (best_left - worst <= rounding * size).all()
