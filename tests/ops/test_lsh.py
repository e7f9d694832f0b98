"""The operators of hashed attention: `opcheck`, torch.compile, operation counts, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gossamer.hashed import attend_hashed
from gossamer.selectors import LSH, sorted_rounds

CONVENTIONS = {
    "paper": LSH.paper(2, 4),
    "trax": LSH.trax(2, 4),
    "lucidrains, both ways": LSH.lucidrains(2, 4, causal=False),
}


def arguments(lsh: LSH, dtype: torch.dtype = torch.float32, padded: bool = False) -> tuple[object, ...]:
    x = torch.randn(2, 3, 18, 8).to(dtype).requires_grad_()
    v = torch.randn(2, 18, 3, 6).to(dtype).transpose(1, 2).requires_grad_()
    within = torch.tensor([[0, 11], [4, 18]], dtype=torch.int32) if padded else None
    settings = {"own_bucket": not lsh.other_buckets, "once": not lsh.repeats, "within": within}
    rounds, chunks = sorted_rounds(torch.randint(3, (2, 3, 2, 18)), lsh.chunks, **settings), lsh.chunks
    return x, v, *rounds, chunks.size, chunks.before, chunks.after, chunks.edge, chunks.causal, 0.5, 1e-6, None


CASES = {name: lambda lsh=lsh: arguments(lsh) for name, lsh in CONVENTIONS.items()} | {
    "float64": lambda: arguments(CONVENTIONS["trax"], torch.float64),
    "half precision, padded": lambda: arguments(CONVENTIONS["paper"], torch.bfloat16, padded=True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_operator_keeps_torch_s_rules(case: str) -> None:
    torch.library.opcheck(torch.ops.gossamer.lsh_attend, CASES[case]())


@pytest.mark.parametrize("case", CASES)
def test_the_backward_operator_keeps_torch_s_rules(case: str) -> None:
    x, v, *rest = (y.detach() if isinstance(y, Tensor) else y for y in CASES[case]())
    out, lse = torch.ops.gossamer.lsh_attend(x, v, *rest)
    for grad_lse in (None, torch.randn_like(lse)):
        given = torch.randn_like(out), grad_lse, x, v, out, lse, *rest
        torch.library.opcheck(torch.ops.gossamer.lsh_attend_backward, given)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_gradient_is_the_derivative(name: str) -> None:
    x, v, *rest = arguments(CONVENTIONS[name], torch.float64)

    def attend(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.gossamer.lsh_attend(x, v, *rest)
        return out, torch.where(lse > -5e4, lse, 0.0)

    assert torch.autograd.gradcheck(attend, (x, v))


def test_there_are_no_second_gradients() -> None:
    x, v, *rest = CASES["trax"]()
    out, _ = torch.ops.gossamer.lsh_attend(x, v, *rest)
    (dx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="lsh_attend has no gradients of gradients"):
        dx.sum().backward()


def test_operations_are_counted_as_if_chunks_were_full() -> None:
    lsh = LSH.trax(2, 8)
    x, v = torch.zeros(1, 3, 64, 16, requires_grad=True), torch.zeros(1, 3, 64, 16)
    with FlopCounterMode(display=False) as counter:
        attend_hashed(x, v, torch.zeros(1, 3, 2, 64, dtype=torch.int64), lsh).sum().backward()
    pairs = 3 * 2 * 64 * 16
    operators = counter.get_flop_counts()["Global"]
    assert operators[torch.ops.gossamer.lsh_attend] == 2 * pairs * (16 + 16)
    assert operators[torch.ops.gossamer.lsh_attend_backward] == 2 * pairs * (3 * 16 + 2 * 16)


def test_autocast_decides_the_dtype() -> None:
    x, buckets = torch.randn(1, 2, 20, 8), torch.randint(3, (1, 2, 2, 20))
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_hashed(x, x, buckets, CONVENTIONS["trax"])
    assert torch.equal(found, attend_hashed(x.bfloat16(), x.bfloat16(), buckets, CONVENTIONS["trax"]))
