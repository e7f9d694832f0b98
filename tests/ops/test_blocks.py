"""The operators of `attend_blocks`: `opcheck`, torch.compile, operation counts and shapes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gossamer.block_sparse import attend_blocks


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tensors(groups: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 40, 8), (2, groups, 40, 8), (2, groups, 40, 6)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def layout(batch: int = 2, heads: int = 4) -> Tensor:
    return torch.rand(batch, heads, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5


WITHIN = torch.tensor([[0, 40], [7, 30]], dtype=torch.int32)
CASES = {
    "plain": lambda: (*tensors(), layout(), None, 16, 0.25, None),
    "float64, shared": lambda: (*tensors(1, torch.float64), layout(1, 1), None, 16, 0.25, None),
    "half precision": lambda: (*tensors(dtype=torch.bfloat16), layout(), None, 16, 0.25, "tiled"),
    "within": lambda: (*tensors(), layout(), WITHIN, 16, 0.25, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_operator_keeps_torch_s_rules(case: str) -> None:
    torch.library.opcheck(torch.ops.gossamer.attend_blocks, CASES[case]())


@pytest.mark.parametrize("case", CASES)
def test_the_backward_operator_keeps_torch_s_rules(case: str) -> None:
    q, k, v, *settings = (x.detach() if isinstance(x, Tensor) else x for x in CASES[case]())
    out, lse = torch.ops.gossamer.attend_blocks(q, k, v, *settings)
    for grad_lse in (None, torch.randn_like(lse)):
        given = torch.randn_like(out), grad_lse, q, k, v, out, lse, *settings
        torch.library.opcheck(torch.ops.gossamer.attend_blocks_backward, given)


def chosen(q: Tensor, k: Tensor, v: Tensor, scores: Tensor, within: Tensor | None) -> Tensor:
    out, lse = attend_blocks(q * 2, k, v, scores > 0, block=16, within=within, return_lse=True)
    return out * lse.clamp(min=-9.0).exp()[..., None]


@pytest.mark.parametrize("within", [None, WITHIN], ids=["whole", "within"])
def test_compiled_whole_it_is_the_same(within: Tensor | None) -> None:
    """The layout is made in the graph, from numbers."""
    leaves, scores = tensors(), torch.randn(2, 4, 3, 3)
    compiled = torch.compile(chosen, fullgraph=True, backend="aot_eager")
    found, right = compiled(*leaves, scores, within), chosen(*leaves, scores, within)
    torch.testing.assert_close(found, right)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), leaves) for x in (found, right)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_bad_call_is_refused_under_compile_too() -> None:
    compiled = torch.compile(chosen, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"layout is torch\.bool of shape"):
        compiled(*tensors(), torch.randn(2, 4, 2, 3), None)


def test_operations_are_counted_as_if_all_were_visible() -> None:
    q, k, v = tensors()
    with FlopCounterMode(display=False) as counter:
        attend_blocks(q, k, v, layout(), block=16).sum().backward()
    pairs = 2 * 4 * 40 * 40
    assert counter.get_total_flops() == 2 * pairs * (8 + 6) + 2 * pairs * (3 * 8 + 2 * 6)


def test_meta_tensors_give_shapes() -> None:
    q, k, v = (x.detach().to("meta") for x in tensors())
    out, lse = torch.ops.gossamer.attend_blocks(q, k, v, layout().to("meta"), None, 16, 1.0, None)
    assert out.shape == (2, 4, 40, 6) and lse.shape == (2, 4, 40) and lse.dtype == torch.float32


def test_there_are_no_gradients_of_gradients() -> None:
    q, k, v = tensors()
    (gradient,) = torch.autograd.grad(attend_blocks(q, k, v, layout(), block=16).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attend_blocks has no gradients of gradients"):
        gradient.sum().backward()
