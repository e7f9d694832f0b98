"""Runs the Triton kernels of an index's lesson beside plain PyTorch, in Triton's interpreter, and prints what fails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from gossamer.kernels.tiled.warm_up import TILED_WARM_UP
from gossamer.kernels.triton import warm_up
from gossamer.kernels.triton.warm_up import TRITON_WARM_UP
from gossamer.kernels.warm_up import Lesson
from tests.kernels.interpreter import tell


@dataclass(frozen=True)
class Case:
    """Sizes of a lesson."""

    queries: int = 20
    keys: int = 20
    heads: int = 4
    key_heads: int = 2
    width: int = 16
    index_heads: int = 3
    index_width: int = 16
    within: tuple[tuple[int, int], ...] | None = None
    relu: bool = True
    most_pairs: int = 2**25
    dtype: torch.dtype = torch.float32


CASES = {
    "plain": Case(),
    "no relu": Case(relu=False),
    "the last queries": Case(queries=7, keys=50),
    "queries before the first key": Case(queries=20, keys=9),
    "within": Case(within=((0, 13), (5, 20))),
    "in parts": Case(most_pairs=2 * 20 * 6),
    "several tiles": Case(queries=40, keys=75, index_heads=2, heads=2, key_heads=1),
    "wide latents": Case(heads=2, key_heads=1, width=144, index_width=40),
    "float16": Case(dtype=torch.float16, index_heads=4),
}


def draw(case: Case, device: str = "cpu") -> tuple[Lesson, Tensor]:
    """(lesson, gradient of the divergences)"""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def given(*shape: int) -> Tensor:
        return normal(*shape).to(case.dtype)

    q, k = (
        given(2, case.queries, case.heads, case.width).transpose(1, 2),
        given(2, case.key_heads, case.keys, case.width),
    )
    index = given(2, case.index_heads, case.queries, case.index_width), given(2, case.keys, case.index_width)
    within = None if case.within is None else torch.tensor(case.within, dtype=torch.int32, device=device)
    lse = normal(2, case.heads, case.queries) + 3.0
    lse[0, :, -1] = -torch.inf
    weights = normal(2, case.queries, case.index_heads) * (case.index_heads * case.index_width) ** -0.5
    lesson = Lesson(q, k, lse, *index, weights, within, case.width**-0.5, case.relu)
    return lesson, normal(2, case.queries)


def widened(lesson: Lesson) -> Lesson:
    """The same numbers in float64."""
    tensors = {name: getattr(lesson, name).double() for name in ("q", "k", "lse", "index_q", "index_k", "weights")}
    return replace(lesson, **tensors)


def check(case: Case, device: str = "cpu") -> None:
    """Divergences, and gradients, are about as exact as those of plain PyTorch, and the same bits again."""
    lesson, grad = draw(case, device)
    results = []
    with mock.patch.object(warm_up, "MOST_PAIRS", case.most_pairs):
        roads = (TILED_WARM_UP, TILED_WARM_UP, TRITON_WARM_UP, TRITON_WARM_UP)
        for given, road in zip((widened(lesson), lesson, lesson, lesson), roads, strict=True):
            assert road.refuses(given) is None
            found = road.forward(given)
            results.append([*found, *road.backward(given, found, grad)])
    for exact, plain, once, again in zip(*results, strict=True):
        assert once.dtype == plain.dtype and torch.equal(once, again)
        usual, off = (
            (x.double() - exact).nan_to_num(0.0, torch.inf, torch.inf).abs().max()  # -inf less -inf
            for x in (plain, once)
        )
        least = 8 * torch.finfo(once.dtype).eps * exact[exact.isfinite()].abs().max()
        assert torch.equal(once.isfinite(), exact.isfinite()) and off <= 2 * usual + least, (off, usual, least)


CHECKS = {name: partial(check, case) for name, case in CASES.items()}


if __name__ == "__main__":
    tell(CHECKS)
