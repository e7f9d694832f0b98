"""Attention over chosen keys on a GPU: right by every road, without waiting for it, and the same bits each time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from gossamer.indexed import Selection, attend_indexed, attention_mass, index_scores
from gossamer.kernels import Softmax
from gossamer.kernels.indexed import Inputs
from gossamer.kernels.inverse_lists import canonical, inverse_lists, standing
from gossamer.kernels.tiled.indexed_layouts import Layout
from gossamer.ops.indexed import road
from tests import chosen_checks
from tests.chosen_checks import SIZES, Sizes
from tests.indexed_checks import (
    CASES,
    Case,
    check_definition,
    check_hidden_numbers,
    check_repeatable,
    check_support,
    draw,
    ours,
    run,
)

pytestmark = pytest.mark.gpu

WIDE = {
    "64 wide": Case(heads=16, key_heads=2, queries=50, keys=300, width=64, value_width=64, chosen=90, causal=True),
    "128 wide, a choice a key head": Case(8, 4, 40, 300, 128, 128, 70, runs=4, sinks=True),
    "256 wide, one head": Case(1, 1, 40, 300, 256, 192, 40),
    "80 wide": Case(4, 4, 40, 300, 80, 80, 40, causal=True),
    "latents": Case(64, 1, 40, 300, 576, 512, 130, latent=True, causal=True, scale=0.1, sinks=True),
    "latents, many heads": Case(128, 1, 10, 200, 576, 512, 70, latent=True, scale=0.1),
    "latents in blocks": Case(32, 1, 100, 300, 576, 512, 3, block=64, latent=True, causal=True, scale=0.1),
    "blocks of 16": Case(16, 2, 200, 300, 64, 64, 5, block=16, runs=2, causal=True),
    "blocks of 64": Case(16, 1, 200, 500, 128, 128, 4, block=64, causal=True, sinks=True),
    "blocks of 100, one head": Case(2, 2, 200, 510, 64, 32, 3, block=100, causal=True),
    "small blocks": Case(8, 2, 100, 300, 64, 64, 6, block=8, causal=True),
    "softcap": Case(8, 2, 50, 300, 64, 64, 40, softcap=2.0),
    "mask": Case(8, 2, 50, 300, 64, 64, 40, mask=True),
}
DTYPES = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode warns of being experimental
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_definition(name: str) -> None:
    check_definition(CASES[name], torch.float32, "cuda", "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WIDE)
def test_every_dtype_is_the_definition(name: str, dtype: torch.dtype) -> None:
    check_definition(WIDE[name], dtype, "cuda")


@pytest.mark.parametrize("name", [name for name, case in WIDE.items() if case.latent])
def test_the_portable_kernels_compute_latents_too(name: str) -> None:
    check_definition(WIDE[name], torch.bfloat16, "cuda", "triton")
    check_repeatable(WIDE[name], torch.bfloat16, "cuda", "triton")


@pytest.mark.parametrize("name", ["64 wide", "latents", "blocks of 64", "blocks of 100, one head", "small blocks"])
def test_exactly_the_chosen_are_seen(name: str) -> None:
    check_support(replace(WIDE[name], keys=250), torch.bfloat16, "cuda", "triton")


@pytest.mark.parametrize("name", WIDE)
def test_results_repeat_to_the_bit(name: str) -> None:
    check_repeatable(WIDE[name], torch.bfloat16, "cuda", repeats=100)


@pytest.mark.parametrize("name", ["64 wide", "latents", "blocks of 16"])
def test_what_nobody_sees_may_hold_anything(name: str) -> None:
    few = {"queries": 5, "chosen": 3 if WIDE[name].block > 1 else 7}
    check_hidden_numbers(replace(WIDE[name], **few), torch.bfloat16, "cuda")


@pytest.mark.parametrize("name", ["64 wide", "128 wide, a choice a key head", "blocks of 64"])
def test_the_two_roads_agree(name: str) -> None:
    problem = draw(replace(WIDE[name], queries=1000, keys=1200), torch.float32, "cuda")
    found, right = (run(ours, problem, backend=backend) for backend in ("triton", "tiled"))
    for result, x in right.items():
        torch.testing.assert_close(found[result], x, rtol=1e-5, atol=5e-5, msg=result)


@pytest.mark.parametrize("block", [1, 32])
def test_both_roads_drop_the_same_pairs(block: int) -> None:
    q = torch.randn(1, 8, 200, 64, device="cuda")
    k, v = torch.randn(1, 2, 300, 64, device="cuda"), torch.randn(1, 2, 300, 64, device="cuda")
    selection = Selection(torch.randint(300 // block, (1, 200, 7), device="cuda"), block, causal=True)
    found = []
    for backend in ("triton", "tiled"):
        tensors = [x.clone().requires_grad_() for x in (q, k, v)]
        torch.manual_seed(7)
        out = attend_indexed(*tensors, selection, dropout=0.4, backend=backend)
        found.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["64 wide", "latents", "blocks of 64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nobody_waits_for_the_device(name: str, dtype: torch.dtype, no_waiting: None) -> None:
    torch.cuda.set_sync_debug_mode("default")
    problem = draw(WIDE[name], dtype, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    run(ours, problem)


@pytest.mark.parametrize("name", ["64 wide", "latents", "blocks of 64"])
def test_a_graph_repeats_what_it_captured(name: str) -> None:
    problem = draw(WIDE[name], torch.bfloat16, "cuda")
    v = problem.k[..., : problem.case.value_width] if problem.v is None else problem.v
    given = problem, problem.q, problem.k, v, problem.sinks
    wanted = ours(*given)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ours(*given)[0]
    problem.q.mul_(2.0)
    graph.replay()
    doubled = out.clone()
    problem.q.div_(2.0)
    graph.replay()
    assert torch.equal(out, wanted) and not torch.equal(doubled, wanted)


def test_rows_and_lists_are_those_of_the_cpu() -> None:
    names = "indices", "counts", "stood", "starts", "entries"
    long = Case(queries=500, keys=9000, chosen=2500, causal=True)
    for case in (long, *(CASES[name] for name in CASES), WIDE["blocks of 16"]):
        found = []
        for device in ("cpu", "cuda"):
            selection = draw(case, device=device).selection
            rows, stood = canonical(selection, case.keys), standing(selection, case.keys)
            found.append([rows.indices, rows.counts, stood, *inverse_lists(rows, case.keys, 2, 9)])
        for (x, y), name in zip(zip(*found, strict=True), names, strict=True):
            if name == "entries":  # behind the last list anything may stand
                last = found[0][3][..., -1].min()
                x, y = x[..., :last], y[..., :last]
            assert torch.equal(x, y.cpu()), name


def test_the_portable_kernels_take_what_they_can() -> None:
    problem = draw(WIDE["64 wide"], torch.float32, "cuda")
    given = Inputs(problem.q, problem.k, problem.v, 64, None, problem.selection, Softmax(1.0))
    assert road(given).name == "triton" and road(replace(given, q=problem.q.double())).name == "tiled"


@pytest.mark.parametrize("keys", [300, 4000], ids=["all keys stand there", "keys are gathered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_torch_is_as_on_the_cpu(keys: int, dtype: torch.dtype, no_waiting: None) -> None:
    q = torch.randn(2, 4, 200, 64, dtype=dtype)
    k, v = torch.randn(2, 2, keys, 64, dtype=dtype), torch.randn(2, 2, keys, 32, dtype=dtype)
    chosen, mask = torch.randint(-2, keys + 2, (2, 200, 40)), torch.rand(2, 1, 200, keys) < 0.7
    found = []
    for device in ("cpu", "cuda", "cuda"):
        tensors = [x.to(device, non_blocking=True).requires_grad_() for x in (q, k, v)]
        selection = Selection(chosen.to(device, non_blocking=True), mask=mask.to(device, non_blocking=True))
        assert Layout.of(Inputs(*tensors, 32, None, selection, Softmax(1.0))).gathers == (keys == 4000)
        out = attend_indexed(*tensors, selection, backend="tiled")
        found.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), tensors)])
    torch.cuda.set_sync_debug_mode("default")
    for want, first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
        error = (first.cpu().double() - want.double()).abs().max()
        assert error <= 64 * torch.finfo(dtype).eps * want.double().abs().max().clamp(min=1.0)


AT_CHOSEN = SIZES | {
    "an indexer": Sizes(heads=64, queries=40, keys=300, width=128, chosen=130, causal=True),
    "latents": Sizes(heads=128, queries=20, keys=200, width=576, chosen=70, causal=True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", AT_CHOSEN)
def test_scores_and_mass_at_chosen_keys_are_the_definition(name: str, dtype: torch.dtype) -> None:
    chosen_checks.check_scores(AT_CHOSEN[name], dtype, "cuda")
    chosen_checks.check_mass(AT_CHOSEN[name], dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_portable_mass_at_chosen_latents_is_the_definition(dtype: torch.dtype) -> None:
    chosen_checks.check_mass(AT_CHOSEN["latents"], dtype, "cuda", backend="triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [1, 64, 72, 128])
@pytest.mark.parametrize("chosen", [1, 64, 70, 200])
def test_the_mass_at_chosen_latents_is_the_definition_on_hopper(heads: int, chosen: int, dtype: torch.dtype) -> None:
    sizes = Sizes(heads=heads, queries=150, keys=300, width=576, chosen=chosen, causal=True)
    chosen_checks.check_mass(sizes, dtype, "cuda", backend="hopper")


def test_the_mass_on_hopper_repeats_and_leaves_out_what_sees_nothing_and_what_is_hidden() -> None:
    problem = draw(Sizes(heads=128, queries=150, keys=300, width=576, chosen=70).case, torch.bfloat16, "cuda")
    lse = torch.randn(problem.q.shape[:3], device="cuda") + 4.0
    lse[0, :, 5], lse[1, 3:] = -torch.inf, -torch.inf
    problem.k[:, :, 7] = torch.nan
    indices = torch.where(problem.selection.indices == 7, -1, problem.selection.indices)
    given = problem.q, problem.k, lse, replace(problem.selection, indices=indices)
    once, again = (attention_mass(*given, backend="hopper") for _ in range(2))
    assert torch.equal(once, again) and not once[0, 5].any()
    torch.testing.assert_close(once, attention_mass(*given, backend="triton"), rtol=1e-4, atol=1e-7)


def test_scores_at_chosen_keys_repeat_to_the_bit() -> None:
    once, again = (chosen_checks.run_scores(AT_CHOSEN["an indexer"], torch.bfloat16, "cuda", None)[0] for _ in range(2))
    assert all(map(torch.equal, once, again))


def test_whatever_is_hidden_changes_no_score() -> None:
    chosen_checks.check_hidden_numbers(Sizes(keys=300, width=128), torch.bfloat16, "cuda")


@pytest.mark.parametrize("name", ["an indexer", "latents"])
def test_nobody_waits_for_scores_and_mass_at_chosen_keys(name: str, no_waiting: None) -> None:
    torch.cuda.set_sync_debug_mode("default")
    problem = draw(AT_CHOSEN[name].case, torch.bfloat16, "cuda")
    q, k, weights = problem.q, problem.k[:, 0], problem.grad_lse.transpose(1, 2).float()
    lse = problem.grad_lse.float()
    torch.cuda.set_sync_debug_mode("error")
    given = [x.requires_grad_() for x in (q, k, weights)]
    scores = index_scores(*given, problem.selection)
    torch.autograd.grad(scores, given, torch.ones_like(scores))
    attention_mass(problem.q, problem.k, lse, problem.selection)
