"""Runs the checks of indexed attention over the Triton kernels, in Triton's interpreter, and prints what fails as JSON.

Float32 and float16 only: the interpreter multiplies bfloat16 tiles as if they were integers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from unittest import mock

import torch

from gossamer.indexed import Selection, attend_indexed
from tests import chosen_checks
from tests import indexed_checks as checks
from tests.chosen_checks import SIZES, Sizes
from tests.indexed_checks import Case
from tests.kernels.interpreter import tell

SMALLER = {"queries": 4, "keys": 30}


def smaller(case: Case, batch: int) -> Case:
    """The interpreter is slow."""
    short = case.block == 1 and case.chosen < 30
    return replace(case, queries=min(case.queries, 6), keys=min(case.keys, 30) if short else case.keys, batch=batch)


CASES = {
    "plain": Case(),
    "a choice a key head": Case(runs=2, heads=6, batch=2, dtype=torch.int64),
    "one head": Case(1, 1),
    "causal, with sinks": Case(queries=9, keys=20, causal=True, sinks=True),
    "more queries than keys": Case(queries=6, keys=4, causal=True),
    "mask": Case(mask=True),
    "softcap": Case(softcap=1.5, scale=0.7),
    "several tiles of heads and keys": Case(40, 1, queries=2, chosen=80, keys=90, width=20, value_width=20),
    "tails": Case(width=40, value_width=24),
    "latents": Case(8, 1, latent=True, width=24, value_width=16, causal=True, sinks=True),
    "latents whose value is no power of two": Case(8, 1, latent=True, width=24, value_width=12),
    "latents without a tail": Case(8, 1, latent=True, width=16, value_width=16),
    "small blocks": Case(block=8, chosen=3, causal=True),
    "blocks": Case(block=16, keys=90, chosen=4, causal=True, sinks=True, runs=2),
    "blocks of several tiles, cut short": Case(block=80, keys=370, chosen=3, causal=True),
    "blocks under a mask": Case(block=16, keys=90, chosen=2, mask=True),
    "latents in blocks": Case(8, 1, keys=100, block=32, chosen=2, latent=True, width=24, value_width=16),
}
CASES = {name: smaller(case, 2 if name in ("plain", "blocks") else 1) for name, case in CASES.items()}


def by_triton(check: object, name: str, dtype: torch.dtype = torch.float32) -> object:
    return partial(check, CASES[name], dtype, backend="triton")


def check_passes(name: str, room: int) -> None:
    """Several passes over queries and key heads, and several parts of lists, add up to what one gives."""
    from gossamer.kernels.triton import indexed, row_sums

    problem = checks.draw(CASES[name], torch.float32)
    whole = checks.run(checks.ours, problem, backend="triton")
    small = {"STEPS": 0, "USUAL": 1}, {"WORKSPACE": room, "LEAST": 2}
    with mock.patch.multiple(indexed, **small[0]), mock.patch.multiple(row_sums, **small[1]):
        found = checks.run(checks.ours, problem, backend="triton")
    for result, x in found.items():
        torch.testing.assert_close(x, whole[result], rtol=1e-5, atol=1e-5, msg=result)


def check_rows(case: Case) -> None:
    """Rows in order, and rows that stand, are those of plain torch; several tiles a row."""
    from gossamer.kernels import chosen_rows
    from gossamer.kernels.inverse_lists import canonical, standing

    selection = checks.draw(case).selection
    rows = canonical(selection, case.keys)
    with mock.patch.object(chosen_rows, "TILE", 4):
        indices, counts = chosen_rows.ordered_rows(selection, case.keys)
        stood = chosen_rows.standing_rows(selection, case.keys)
    assert torch.equal(indices, rows.indices) and torch.equal(counts, rows.counts)
    assert case.block > 1 or torch.equal(stood, standing(selection, case.keys))


def check_no_queries() -> None:
    """Keys that nobody asks for get zeros."""
    for block in (1, 16):
        q, k = torch.zeros(1, 2, 0, 16, requires_grad=True), torch.ones(1, 2, 40, 16, requires_grad=True)
        selection = Selection(torch.zeros(1, 0, 3, dtype=torch.int32), block)
        attend_indexed(q, k, k, selection, backend="triton").sum().backward()
        assert not k.grad.any()


def check_small_gradients() -> None:
    """What each of many queries owes to a value is smaller than any number of float16, and all of it is none."""
    q, k = torch.zeros(1, 1, 64, 16, dtype=torch.float16), torch.randn(1, 1, 64, 16).half()
    selection = Selection(torch.arange(64, dtype=torch.int32).expand(1, 64, -1))
    v = torch.zeros_like(k).requires_grad_()
    attend_indexed(q, k, v, selection, backend="triton").backward(torch.full_like(q, 1e-6))
    torch.testing.assert_close(v.grad, torch.full_like(v, 1e-6), rtol=0.05, atol=0.0)


AT_CHOSEN = {
    f"{name} of {sizes}": partial(check, replace(SIZES[sizes], batch=1, **SMALLER), dtype, backend="triton")
    for name, check in {"scores": chosen_checks.check_scores, "mass": chosen_checks.check_mass}.items()
    for sizes in SIZES
    for dtype in ((torch.float16,) if sizes == "one head" else (torch.float32,))
    if name == "scores" or sizes != "no relu"
} | {
    "mass of shared keys": partial(chosen_checks.check_mass, Sizes(key_heads=2), torch.float32, backend="triton"),
    "scores whatever is hidden": partial(chosen_checks.check_hidden_numbers, Sizes(), torch.float32, backend="triton"),
}

ROWS = {
    "out of order": Case(queries=9, keys=30, runs=2, causal=True, dtype=torch.int64),
    "in disorder": Case(queries=40, keys=20, chosen=2),
    "in order": Case(tidy=True, queries=20, keys=30, causal=True, chosen=9),
    "more queries than keys": Case(queries=9, keys=5, causal=True),
    "blocks": Case(block=16, keys=150, chosen=6, queries=120, causal=True, batch=1),
    "both ways": Case(queries=9, keys=30),
}

CHECKS = (
    AT_CHOSEN
    | {f"rows {name}": partial(check_rows, case) for name, case in ROWS.items()}
    | {name: by_triton(checks.check_definition, name) for name in CASES}
    | {
        "float16": by_triton(checks.check_definition, "plain", torch.float16),
        "float16, latents": by_triton(checks.check_definition, "latents", torch.float16),
        "float16, blocks": by_triton(checks.check_definition, "blocks", torch.float16),
        "support": by_triton(checks.check_support, "causal, with sinks"),
        "support of blocks": by_triton(checks.check_support, "blocks"),
        "what nobody sees may hold anything": by_triton(checks.check_hidden_numbers, "plain"),
        "what nobody sees in blocks may hold anything": by_triton(checks.check_hidden_numbers, "blocks"),
        "results repeat": by_triton(checks.check_repeatable, "a choice a key head"),
        "no queries": partial(check_no_queries),
        "small gradients of float16": check_small_gradients,
        "several passes": partial(check_passes, "a choice a key head", 4 * 7 * 28 * 3),
        "several parts of lists": partial(check_passes, "blocks", 2**20),
    }
)


if __name__ == "__main__":
    tell(CHECKS)
