"""What every relative of indexed attention shall do beside its formula: dtypes, the same bits, no wait for a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gossamer.config import CSA, HCA, WINDOW_ONLY, IndexerConfig
from gossamer.nn import (
    BlockIndexedAttention,
    CompressedAttention,
    HySparseAttention,
    HySparseFullAttention,
    MoBAAttention,
    NSAAttention,
    SinkAttention,
    StreamingAttention,
)
from gossamer.selectors import NSA, BlockTopK

SMALL = {
    **{"hidden_size": 32, "num_attention_heads": 4, "head_dim": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8},
    **{"o_groups": 2, "o_lora_rank": 8, "sliding_window": 8},
}
INDEXER = IndexerConfig(index_n_heads=2, index_head_dim=16, index_topk=3, qk_rope_head_dim=8)


class HySparse(nn.Module):
    """A full layer, and a sparse one on what it lends."""

    def __init__(self) -> None:
        super().__init__()
        self.full = HySparseFullAttention(32, 4, 2, BlockTopK(8, 2))
        self.sparse = HySparseAttention(32, 4, 2, window=8)

    def forward(self, x: Tensor) -> Tensor:
        out, shared = self.full(x)
        return self.sparse(x + out, shared)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "MoBA": lambda: MoBAAttention(32, 4, 2, block=8),
    "NSA": lambda: NSAAttention(32, 4, 2, NSA(length=8, stride=4, block=8, count=3, first=1, local=1, window=8)),
    "MSA": lambda: BlockIndexedAttention(32, 4, 2, head_width=16, index_width=16, choice=BlockTopK(8, 2)),
    "CSA": lambda: CompressedAttention(replace(CSA, **SMALL, indexer=INDEXER)),
    "HCA": lambda: CompressedAttention(replace(HCA, **SMALL, compress_rate=8)),
    "window": lambda: CompressedAttention(replace(WINDOW_ONLY, **SMALL)),
    "HySparse": HySparse,
    "streaming": lambda: StreamingAttention(32, 4, 2, window=8),
    "sinks": lambda: SinkAttention(32, 4, 2, head_width=16),
}
every_module = pytest.mark.parametrize("name", MODULES)


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and the gradients of the input and of every parameter that gets one."""
    x = x.clone().requires_grad_()
    out = module(x)
    leaves = [x, *module.parameters()]
    found = torch.autograd.grad(out.float().square().sum(), leaves, allow_unused=True)
    return [out.detach(), *(grad for grad in found if grad is not None)]


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
