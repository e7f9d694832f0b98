"""What every relative of indexed attention shall do beside its formula: dtypes, the same bits, no wait for a device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.relatives import MODULES, run

every_module = pytest.mark.parametrize("name", MODULES)


@every_module
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_keeps_its_dtype_and_stays_finite(name: str, dtype: torch.dtype) -> None:
    module = MODULES[name]().to(dtype)
    found = run(module, torch.randn(2, 50, 32, dtype=dtype))
    assert {x.dtype for x in found} == {dtype}
    assert all(x.isfinite().all() for x in found)


@every_module
def test_autocast_computes_in_its_dtype(name: str) -> None:
    module, x = MODULES[name](), torch.randn(2, 50, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, *grads = run(module, x)
    assert out.dtype == torch.bfloat16 and {grad.dtype for grad in grads} == {torch.float32}
    assert (out.float() - module(x)).norm() < 0.2 * module(x).norm()  # near choices may turn out otherwise


@every_module
def test_the_same_call_gives_the_same_bits(name: str) -> None:
    module, x = MODULES[name](), torch.randn(2, 50, 32)
    first = run(module, x)
    for found, right in zip(run(module, x), first, strict=True):
        assert torch.equal(found, right)


@every_module
def test_sequences_of_a_batch_do_not_meet(name: str) -> None:
    module, x = MODULES[name]().double(), torch.randn(3, 50, 32, dtype=torch.float64)
    whole = module(x)
    for row in range(3):
        torch.testing.assert_close(module(x[row : row + 1]), whole[row : row + 1], rtol=1e-10, atol=1e-12)


@every_module
def test_zeros_and_large_numbers_stay_finite(name: str) -> None:
    module = MODULES[name]()
    for x in (torch.zeros(1, 50, 32), 1e4 * torch.randn(1, 50, 32)):
        assert all(found.isfinite().all() for found in run(module, x))


@every_module
def test_nothing_waits_for_a_device(name: str) -> None:
    """Tensors without data cannot be asked what they hold."""
    with FakeTensorMode():
        module, x = MODULES[name](), torch.randn(2, 50, 32, requires_grad=True)
        module(x).sum().backward()
        assert x.grad.shape == x.shape


@every_module
def test_it_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    module = MODULES[name]()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for length in (50, 61):
        x = torch.randn(2, length, 32)
        assert torch.equal(compiled(x), module(x))
