"""Every kernel of indexed attention compiles for Hopper, within its registers and its shared memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch

from gossamer.kernels import Softmax
from gossamer.kernels.chosen import Heads, Index
from gossamer.kernels.indexed import Inputs, Returning
from gossamer.kernels.triton.chosen import TRITON_CHOSEN
from gossamer.kernels.triton.indexed import TRITON_INDEXED
from gossamer.kernels.triton.indexed_configs import widest
from gossamer.selectors.selection import Selection

triton = pytest.importorskip("triton", reason="the kernels need Triton to compile")

from gossamer.kernels.chosen_rows import ordered_rows, standing_rows  # noqa: E402
from tests.kernels import sm90  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process and compiles nothing", allow_module_level=True)

BF16, FP32 = torch.bfloat16, torch.float32
CONSUMER = 99 * 1024
"""Bytes of shared memory that a program may have on a consumer card."""


@dataclass(frozen=True)
class Case:
    """What a kernel is compiled for."""

    width: int = 64
    value_width: int = 64
    dtype: torch.dtype = BF16
    repeats: int = 16
    block: int = 1
    latent: bool = False
    crowded: bool = False
    """With a soft cap and dropout, which take registers."""


def cases() -> dict[str, Case]:
    made = {"one head": Case(repeats=1), "latents": Case(576, 512, repeats=64, latent=True)}
    made["latents in blocks"] = replace(made["latents"], block=64)
    for width, repeats, block in product((64, 128), (1, 4, 16), (1, 64)):
        name = f"{width} wide, {repeats} heads, {'blocks' if block > 1 else 'keys'}"
        made[name] = Case(width, width, repeats=repeats, block=block)
        made[f"{name}, crowded"] = replace(made[name], crowded=True)
    for dtype in (BF16, FP32):
        for width in (64, 128, 256, 576):
            for block in (1, 64):
                name = f"{width} wide, {'blocks' if block > 1 else 'keys'}, {dtype}"
                made[name] = Case(width, width, dtype, 64, block)
                made[f"{name}, crowded"] = replace(made[name], crowded=True)
    return {name: case for name, case in made.items() if case.width <= widest(case.dtype)}


CASES = cases()
QUICK = (
    "64 wide, keys, torch.bfloat16",
    "128 wide, 4 heads, keys",
    "128 wide, blocks, torch.bfloat16, crowded",
    "latents",
)


def compiled_at_chosen(width: int, dtype: torch.dtype, heads: int) -> list[sm90.Compiled]:
    """What an index's scores with their gradients, and the mass of attention, launch."""
    q, k = torch.zeros(1, heads, 64, width, dtype=dtype), torch.zeros(1, 64, width, dtype=dtype)
    places = torch.zeros(1, 64, 100, dtype=torch.int32)
    index = Index(q, k, torch.zeros(1, 64, heads), places, relu=True)
    with sm90.hopper() as kernels:
        TRITON_CHOSEN.scores_backward(index, TRITON_CHOSEN.scores(index))
        TRITON_CHOSEN.mass(Heads(q, k[:, None], torch.zeros(1, heads, 64), places, 1.0))
    return kernels


def compiled(case: Case) -> list[sm90.Compiled]:
    """What a call launches, forward and backward, with a gradient of the log-sum-exp."""
    q, k = (torch.zeros(1, heads, 128, case.width, dtype=case.dtype) for heads in (2 * case.repeats, 2))
    k = k[:, :1] if case.latent else k
    v = None if case.latent else torch.zeros(1, 2, 128, case.value_width, dtype=case.dtype)
    selection = Selection(torch.zeros(1, 128, 2, dtype=torch.int32), case.block, causal=True)
    seed = torch.zeros(1, dtype=torch.int64)
    softmax = Softmax(1.0, 2.0, 0.5, seed) if case.crowded else Softmax(1.0)
    given = Inputs(q, k, v, case.value_width, torch.zeros(q.shape[1]), selection, softmax)
    with sm90.hopper() as kernels:
        out, lse = TRITON_INDEXED.forward(given)
        TRITON_INDEXED.backward(given, Returning(out, lse, out, lse))
    return kernels


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_the_kernels_fit_hopper(name: str) -> None:
    kernels = compiled(CASES[name])
    of_keys = {"indexed_backward_blocks"} if CASES[name].block > 1 else {"indexed_backward_rows", "indexed_sum_rows"}
    assert {kernel.name for kernel in kernels} == {"indexed_forward", "indexed_backward_queries"} | of_keys
    assert [fault for kernel in kernels for fault in kernel.faults] == []
    assert all(kernel.shared_memory <= CONSUMER for kernel in kernels)


AT_CHOSEN = [
    (width, dtype, heads)
    for dtype in (BF16, FP32)
    for width in (64, 128, 256, 576)
    for heads in (8, 64, 128)
    if width <= widest(dtype)
]


@pytest.mark.parametrize(
    "sizes", [x if x == (128, BF16, 64) else pytest.param(x, marks=pytest.mark.slow) for x in AT_CHOSEN], ids=str
)
def test_the_kernels_at_chosen_keys_fit_hopper(sizes: tuple[int, torch.dtype, int]) -> None:
    kernels = compiled_at_chosen(*sizes)
    of_index = {"index_scores", "index_scores_queries", "index_scores_rows", "indexed_sum_rows"}
    assert {kernel.name for kernel in kernels} == of_index | {"attention_mass"}
    assert [fault for kernel in kernels for fault in kernel.faults] == []
    assert all(kernel.shared_memory <= CONSUMER for kernel in kernels)


ONE = {
    "one of all": (1, 1, 1, 1, 1, 1),
    "one query of sixteen heads": (16, 1, 1, 40, 5, 1),
    "one query and one block": (4, 4, 1, 40, 1, 16),
    "one key": (2, 1, 5, 1, 1, 1),
}
"""(heads, key heads, queries, keys, chosen, block): Triton makes an argument that is 1 a constant."""


@pytest.mark.parametrize("name", ONE)
def test_sizes_of_one_compile(name: str) -> None:
    heads, groups, queries, keys, chosen, block = ONE[name]
    q, k = torch.zeros(1, heads, queries, 64, dtype=BF16), torch.zeros(1, groups, keys, 64, dtype=BF16)
    places = torch.zeros(1, queries, chosen, dtype=torch.int32)
    given = Inputs(q, k, k, 64, None, Selection(places, block, causal=True), Softmax(1.0))
    index = Index(q, k[:, 0], torch.zeros(1, queries, heads), places, relu=True)
    with sm90.hopper() as kernels:
        out, lse = TRITON_INDEXED.forward(given)
        TRITON_INDEXED.backward(given, Returning(out, lse, out, None))
        TRITON_CHOSEN.scores_backward(index, TRITON_CHOSEN.scores(index))
        TRITON_CHOSEN.mass(Heads(q, k, lse, places, 1.0))
    assert [fault for kernel in kernels for fault in kernel.faults] == []


def test_the_kernel_of_rows_fits_hopper() -> None:
    selection = Selection(torch.zeros(1, 128, 2048, dtype=torch.int32), causal=True)
    with sm90.hopper() as kernels:
        ordered_rows(selection, 4096)
        standing_rows(selection, 4096)
        ordered_rows(replace(selection, block_size=64, indices=selection.indices.long()), 4096)
    assert len(kernels) == 3
    assert [fault for kernel in kernels for fault in kernel.faults] == []
