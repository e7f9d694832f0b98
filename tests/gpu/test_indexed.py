"""Attention over chosen keys on a GPU: as on the CPU, without waiting for it, and the same bits each time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from gossamer.indexed import Selection, attend_indexed
from gossamer.kernels import Softmax
from gossamer.kernels.indexed import Inputs
from gossamer.kernels.tiled.indexed_layouts import Layout

pytestmark = pytest.mark.gpu


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode warns of being experimental
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("keys", [300, 4000], ids=["all keys stand there", "keys are gathered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_as_on_the_cpu(keys: int, dtype: torch.dtype, no_waiting: None) -> None:
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
