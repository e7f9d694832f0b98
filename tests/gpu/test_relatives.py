"""Relatives of indexed attention on a GPU: what they are on the CPU, the same bits each time, and never waited for."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from gossamer.attention import explain
from gossamer.config import HCA
from gossamer.nn import CompressedAttention
from gossamer.patterns import Causal, Window
from tests.relatives import MODULES, run

pytestmark = pytest.mark.gpu
every_module = pytest.mark.parametrize("name", MODULES)


@every_module
def test_outputs_and_gradients_are_those_of_the_cpu(name: str) -> None:
    """In float64 the same is chosen, but for ties of scores that are equal to the last bits."""
    module, x = MODULES[name]().double(), torch.randn(2, 200, 32, dtype=torch.float64)
    right = run(module, x)
    for found, expected in zip(run(module.cuda(), x.cuda()), right, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-7, atol=1e-9)


@every_module
def test_float32_is_near_float64(name: str) -> None:
    module, x = MODULES[name](), torch.randn(2, 200, 32)
    found = module.cuda()(x.cuda()).cpu().double()
    right = module.cpu().double()(x.double())
    off = (found - right).abs().amax(-1) > 1e-3 * right.abs().max()  # a near score may choose another block
    assert off.float().mean() < 0.02


@every_module
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_dtypes_stay_finite_and_repeat_to_the_bit(name: str, dtype: torch.dtype) -> None:
    module, x = MODULES[name]().cuda().to(dtype), torch.randn(2, 300, 32, device="cuda", dtype=dtype)
    first = run(module, x)
    assert all(found.isfinite().all() for found in first)
    for found, right in zip(run(module, x), first, strict=True):
        assert torch.equal(found, right)


@every_module
def test_nothing_waits_for_the_device(name: str) -> None:
    module, x = MODULES[name]().cuda().bfloat16(), torch.randn(2, 300, 32, device="cuda", dtype=torch.bfloat16)
    run(module, x)  # kernels are compiled and plans made
    x = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode warns of being experimental
        torch.cuda.set_sync_debug_mode("error")
    try:
        module(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_heads_as_wide_as_deepseek_v4s_have_kernels() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "q_lora_rank": 32, "o_groups": 2, "o_lora_rank": 16}
    layer = CompressedAttention(replace(HCA, **sizes, sliding_window=40, compress_rate=16)).cuda().bfloat16()
    x = torch.randn(2, 300, 64, device="cuda", dtype=torch.bfloat16)
    q, k = (torch.empty(2, heads, 300, layer.config.head_dim, device="cuda", dtype=x.dtype) for heads in (4, 1))
    choice = explain(q, k, k, Causal() & Window(40))
    assert layer.config.head_dim == 512 and choice.forward.backend.name == choice.backward.backend.name == "triton"
    found = run(layer, x)[:2]  # the output, and the gradient of the input
    for here, right in zip(found, run(layer.double(), x.double())[:2], strict=True):
        assert (here.double() - right).norm() <= 8 * torch.finfo(torch.bfloat16).eps * right.norm()
