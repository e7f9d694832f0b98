"""The same checks on a GPU, in the dtypes that it is fast in, and on a GPU that is not the current one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gossamer import attend
from gossamer.patterns import Causal, Strided, Window
from tests.checks import (
    Setting,
    check_dropout,
    check_empty_rows,
    check_equals_oracle,
    check_error,
    check_error_beside_sdpa,
    check_no_leak,
    check_pieces,
    check_repeatable,
    check_support,
    check_views,
    draw,
    ours,
)
from tests.patterns_list import CAUSAL, HEADS, PATTERNS

pytestmark = pytest.mark.gpu

every_pattern = pytest.mark.parametrize("name", PATTERNS)
every_causal_pattern = pytest.mark.parametrize("name", CAUSAL)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def setting(name: str, **changes: object) -> Setting:
    """On the backend that takes everything: a kernel would be compiled for each of these. test_kernels.py has those."""
    return Setting(heads=HEADS[name], device="cuda", backend="tiled", **changes)


@every_pattern
@every_dtype
def test_exactly_the_visible_pairs_are_seen(name: str, dtype: torch.dtype) -> None:
    for groups in {1, HEADS[name]}:
        check_support(PATTERNS[name], setting(name, key_heads=groups, dtype=dtype, width=64))
    check_support(PATTERNS[name], setting(name, queries=50, keys=257, dtype=dtype, width=64))


@every_pattern
@every_dtype
def test_the_error_is_that_of_plain_attention(name: str, dtype: torch.dtype) -> None:
    problem = draw(PATTERNS[name], setting(name, batch=3, dtype=dtype, width=64))
    check_error(problem)
    check_error_beside_sdpa(problem)
    check_error(draw(PATTERNS[name], setting(name, batch=3, dtype=dtype, sinks=True, softcap=2.0)))


@every_pattern
def test_it_is_the_oracle_in_float64(name: str) -> None:
    for length in (0, 1, 63, 136, 257):
        check_equals_oracle(draw(PATTERNS[name], setting(name, queries=length, key_heads=1, width=8, sinks=True)))


@pytest.mark.parametrize("width", [16, 32, 40, 64, 80, 96, 128, 192, 256])
@every_dtype
def test_any_width(width: int, dtype: torch.dtype) -> None:
    pattern = Causal() & (Window(100) | Strided(16))
    sizes = {"width": width, "queries": 300, "key_heads": 1, "batch": 2}
    check_error(draw(pattern, Setting(device="cuda", backend="tiled", dtype=dtype, **sizes)))


@every_causal_pattern
@every_dtype
def test_the_future_does_not_leak(name: str, dtype: torch.dtype) -> None:
    check_no_leak(CAUSAL[name], setting(name, dtype=dtype), times=(0, 63, 64, 100))


@every_causal_pattern
def test_pieces_see_what_the_whole_sees(name: str) -> None:
    check_pieces(CAUSAL[name], setting(name), [70, 1, 1, 64])


@pytest.mark.parametrize("name", ["small blocks", "documents", "the future", "nothing", "rows"])
@every_dtype
def test_a_query_that_sees_nothing_gives_nothing(name: str, dtype: torch.dtype) -> None:
    check_empty_rows(PATTERNS[name], setting(name, dtype=dtype))


@every_pattern
@every_dtype
def test_the_same_call_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    check_repeatable(draw(PATTERNS[name], setting(name, dtype=dtype, key_heads=1, sinks=True)))


@every_pattern
def test_any_strides(name: str) -> None:
    check_views(PATTERNS[name], setting(name, batch=2, key_heads=1))


@every_pattern
def test_dropout_drops_the_pairs_that_it_drops_on_a_cpu(name: str) -> None:
    check_dropout(draw(PATTERNS[name], setting(name, batch=2)), 0.3, seed=2**61 + 5)


@every_dtype
@pytest.mark.parametrize("magnitude", [100.0, 0.001, 0.0])
def test_inputs_of_any_size(dtype: torch.dtype, magnitude: float) -> None:
    for name in ("causal", "local and global", "bigbird"):
        check_error(draw(PATTERNS[name], setting(name, batch=3, dtype=dtype, magnitude=magnitude)))


@every_dtype
def test_a_gpu_and_a_cpu_agree(dtype: torch.dtype) -> None:
    for name in ("streaming", "bigbird", "uneven heads"):
        problems = [draw(PATTERNS[name], replace(setting(name, dtype=dtype), device=d)) for d in ("cpu", "cuda")]
        (cpu, cpu_lse), (gpu, gpu_lse) = (ours(problem) for problem in problems)
        torch.testing.assert_close(gpu.cpu(), cpu)
        torch.testing.assert_close(gpu_lse.cpu(), cpu_lse)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_the_dtype_it_asks_for(half: torch.dtype) -> None:
    q = torch.randn(1, 2, 70, 16, device="cuda")
    with torch.autocast("cuda", dtype=half):
        out = attend(q, q, q, Causal())
    assert torch.equal(out, attend(q.to(half), q.to(half), q.to(half), Causal()))


def test_compiled_whole_it_is_the_same() -> None:
    def function(q: torch.Tensor) -> torch.Tensor:
        return attend(q * 2, q, q, Causal() & Window(9)).sin()

    q = torch.randn(1, 2, 70, 16, device="cuda", requires_grad=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, right = compiled(q), function(q)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), q)[0] for x in (found, right)))


def test_keys_on_another_device_are_refused() -> None:
    q = torch.randn(1, 2, 5, 8, device="cuda")
    with pytest.raises(ValueError, match=r"k is torch\.float32 on cpu, but q is torch\.float32 on cuda:0"):
        attend(q, q.cpu(), q, Causal())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_gpu_that_is_not_the_current_one() -> None:
    assert torch.cuda.current_device() == 0
    for name in ("streaming", "bigbird", "uneven heads", "packed dilated"):
        away = replace(setting(name), device="cuda:1")
        check_equals_oracle(draw(PATTERNS[name], away))
        check_dropout(draw(PATTERNS[name], away), 0.3, seed=7)
        out, lse = ours(draw(PATTERNS[name], away))
        assert out.device == lse.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
