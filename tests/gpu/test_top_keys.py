"""The best keys on the GPU: those of the definition, the same bits each time, in little memory, never waited for."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from gossamer.indexed import top_keys
from gossamer.kernels.tiled.top_keys import TILED_SELECTION
from gossamer.kernels.triton.top_keys import TRITON_QUANTIZATION, TRITON_SELECTION
from gossamer.ops.top_keys import indexed, road
from gossamer.selectors.quantized import quantized
from tests.top_keys_checks import CASES, KINDS, Case, check_definition, check_normal, check_selection, draw, scores_of

pytestmark = pytest.mark.gpu

DTYPES = torch.float32, torch.bfloat16, torch.float16
BIG = Case(queries=2500, keys=9000, heads=16, width=64, count=512)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keys", "count"), [(200, 20), (5_000, 50), (9_001, 700), (70_000, 64)])
def test_the_choice_is_the_definition(kind: str, keys: int, count: int) -> None:
    check_selection(TRITON_SELECTION.select, kind, keys=keys, count=count, device="cuda")


@pytest.mark.parametrize("count", [1, 512, 2048, 6000])
@pytest.mark.parametrize("kind", ["normal", "many ties", "zeros of relu", "close", "special"])
def test_the_choice_among_very_many_is_that_of_plain_torch(kind: str, count: int) -> None:
    scores = scores_of(kind, 40, 131_072).cuda()
    visible = torch.randint(0, 131_073, (40,), device="cuda").int()
    right = TILED_SELECTION.select(scores, visible, count)
    assert torch.equal(TRITON_SELECTION.select(scores, visible, count), right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_case_is_the_definition(name: str, dtype: torch.dtype) -> None:
    check_definition(CASES[name], dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [16, 40, 64, 128, 256])
@pytest.mark.parametrize("heads", [1, 4, 16, 64])
def test_every_shape_is_the_definition(heads: int, width: int, dtype: torch.dtype) -> None:
    check_definition(Case(queries=150, keys=333, heads=heads, width=width, count=30), dtype, "cuda", backend="triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("precision", ["as given", "fp8 ue8m0"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("heads", [4, 8, 16, 32, 64])
def test_every_shape_that_hopper_takes_is_the_definition(
    heads: int, width: int, precision: str, dtype: torch.dtype
) -> None:
    case = Case(queries=150, keys=333, heads=heads, width=width, count=30)
    check_definition(case, dtype, "cuda", precision=precision, backend="hopper")


@pytest.mark.parametrize("precision", ["as given", "fp8", "fp8 ue8m0"])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_normal_features_are_ordered_to_within_rounding(width: int, precision: str) -> None:
    case = Case(queries=300, keys=700, heads=64, width=width, count=100)
    check_normal(case, torch.bfloat16, "cuda", precision=precision)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", ["fp8", "fp8 ue8m0"])
@pytest.mark.parametrize("width", [16, 40, 128])
def test_a_kernel_quantizes_as_the_definition_does(width: int, precision: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 77, width).mul_(torch.logspace(-6, 4, 77)[:, None]).to(dtype).transpose(1, 2)
    x[0, 0, 0], x[1, 2, 1, 3], x[1, 3, 0, 5] = 0.0, torch.nan, torch.inf
    wanted = quantized(x, precision)
    found = TRITON_QUANTIZATION.quantize(x.cuda(), precision)
    for here, there in zip(found, wanted, strict=True):
        assert torch.equal(here.cpu().float().nan_to_num(nan=777.0), there.float().nan_to_num(nan=777.0))


def test_vectors_of_many_sequences_are_quantized() -> None:
    x = torch.randn(1025, 64, 1, 64)
    for here, there in zip(TRITON_QUANTIZATION.quantize(x.cuda(), "fp8"), quantized(x, "fp8"), strict=True):
        assert torch.equal(here.cpu().float(), there.float())


@pytest.mark.parametrize("precision", ["as given", "fp8"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("backend", ["hopper", "triton", "tiled"])
def test_a_key_without_a_score_is_never_taken(backend: str, relu: bool, precision: str) -> None:
    q, k, weights, _ = draw(Case(queries=150, keys=150, heads=16, width=64), torch.bfloat16, "cuda")
    k[:, 3], k[:, 5, 0] = torch.nan, torch.inf
    options = {"relu": relu, "precision": precision, "backend": backend}
    found = top_keys(q.abs() + 1, k, -weights.abs() - 1, 150, **options)  # infinity times -1
    assert not torch.isin(found, torch.tensor([3, 5], device="cuda")).any()
    assert ((found[:, -1] >= 0).sum(-1) == 148).all()


def test_eight_bits_are_multiplied_as_they_are() -> None:
    """Small integers times powers of two are not rounded, so that instructions for eight bits give the definition."""
    check_definition(Case(queries=150, keys=333, heads=64, width=128), device="cuda", precision="fp8 ue8m0")


def test_the_two_roads_agree() -> None:
    q, k, weights, _ = draw(BIG, torch.bfloat16, "cuda")
    found, right = (top_keys(q, k, weights, BIG.count, backend=backend) for backend in ("triton", "tiled"))
    assert torch.equal(found, right)


@pytest.mark.parametrize("precision", ["as given", "fp8 ue8m0"])
@pytest.mark.parametrize(("queries", "count"), [(1, 50), (5, 50), (2500, 512), (2500, 2200)])
def test_segments_of_keys_are_scored_as_the_portable_road_does(queries: int, count: int, precision: str) -> None:
    """A few queries fill the device by short segments; of many, a program takes several segments in turn."""
    q, k, weights, _ = draw(Case(queries, keys=20_001, heads=16, width=128, batch=3), torch.bfloat16, "cuda")
    choose = partial(top_keys, q, k, weights, count, precision=precision)
    found, right = (choose(backend=backend) for backend in ("hopper", "triton"))
    assert torch.equal(found, right)


def test_the_quick_road_is_taken() -> None:
    q, k, weights, _ = draw(BIG, torch.bfloat16, "cuda")
    assert road(indexed(q, k, weights, None, relu=True, causal=True, precision="as given")).name != "tiled"


@pytest.mark.parametrize("precision", ["as given", "fp8"])
def test_a_hundred_calls_give_the_same_bits(precision: str) -> None:
    """Features are integers, so that many scores tie at the threshold."""
    q, k, weights, _ = draw(BIG, torch.bfloat16, "cuda")
    choose = partial(top_keys, q, k, weights, BIG.count, precision=precision)
    first = choose()
    for _ in range(100):
        assert torch.equal(choose(), first)


def test_memory_is_that_of_a_part_of_the_scores() -> None:
    """Of 65,536 × 65,536 scores, 16 GiB, an eightieth is held at most."""
    case = Case(queries=65_536, keys=65_536, heads=4, width=64, count=512, batch=1)
    q, k, weights, _ = draw(case, torch.bfloat16, "cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = top_keys(q, k, weights, case.count)
    assert torch.cuda.max_memory_allocated() - before - found.nbytes < 200 * 2**20
    assert (found[0, 511:] >= 0).all() and (found[0, 511:, 1:] > found[0, 511:, :-1]).all()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["as given", "fp8"])
def test_nothing_waits_and_a_graph_repeats_it(precision: str) -> None:
    q, k, weights, _ = draw(BIG, torch.bfloat16, "cuda")
    choose = partial(top_keys, q, k, weights, BIG.count, precision=precision)
    right = choose()
    torch.cuda.set_sync_debug_mode("error")
    try:
        choose()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = choose()
    found.zero_()
    graph.replay()
    assert torch.equal(found, right)


def test_older_gpus_multiply_eight_bits_in_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(queries=150, keys=333, heads=64, width=128)
    monkeypatch.setattr("gossamer.kernels.triton.top_keys.capability", lambda device: (8, 0))
    check_definition(case, device="cuda", backend="triton", precision="fp8 ue8m0")
