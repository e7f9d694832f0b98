"""The operators of indexed attention: `opcheck`, operation counts, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gossamer.indexed import Selection, attend_indexed, attend_latent


def arguments(
    dtype: torch.dtype = torch.float32, *, latent: bool = False, masked: bool = False, keys: int = 40, block: int = 1
) -> tuple[object, ...]:
    q = torch.randn(2, 9, 4, 8).to(dtype).transpose(1, 2).requires_grad_()
    k = torch.randn(2, 1 if latent else 2, keys, 8).to(dtype).requires_grad_()
    v = None if latent else torch.randn(2, keys, 2, 6).to(dtype).transpose(1, 2).requires_grad_()
    sinks = torch.randn(4, requires_grad=True) if masked else None
    mask = torch.rand(2, 1, 9, keys) < 0.7 if masked else None
    indices = torch.randint(-1, keys // block + 1, (2, 1, 9, 5), dtype=torch.int32)
    return q, k, v, sinks, None, indices, mask, block, True, 6, 0.5, 2.0 if masked else 0.0, 0.0, None


CASES = {
    "plain": arguments,
    "float64, gathered": lambda: arguments(torch.float64, keys=700),
    "half precision, masked, with sinks": lambda: arguments(torch.bfloat16, masked=True),
    "latents": lambda: arguments(latent=True, keys=700),
    "blocks": lambda: arguments(block=4),
}


@pytest.mark.parametrize("case", CASES)
def test_the_operator_keeps_torch_s_rules(case: str) -> None:
    torch.library.opcheck(torch.ops.gossamer.attend_indexed, CASES[case]())


@pytest.mark.parametrize("case", CASES)
def test_the_backward_operator_keeps_torch_s_rules(case: str) -> None:
    given = [x.detach() if isinstance(x, Tensor) else x for x in CASES[case]()]
    out, lse = torch.ops.gossamer.attend_indexed(*given)
    for grad_lse in (None, torch.randn_like(lse)):
        torch.library.opcheck(
            torch.ops.gossamer.attend_indexed_backward, (torch.randn_like(out), grad_lse, out, lse, *given)
        )


def test_there_are_no_second_gradients() -> None:
    q, *rest = arguments()
    out, _ = torch.ops.gossamer.attend_indexed(q, *rest)
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attend_indexed has no gradients of gradients"):
        dq.sum().backward()


@pytest.mark.parametrize("chosen", [5, 100], ids=["few", "more than there are"])
def test_operations_are_counted_by_the_chosen_keys(chosen: int) -> None:
    q, k, v = (torch.zeros(1, heads, 64, 16, requires_grad=True) for heads in (4, 2, 2))
    with FlopCounterMode(display=False) as counter:
        attend_indexed(q, k, v, Selection(torch.zeros(1, 64, chosen, dtype=torch.int64))).sum().backward()
    pairs = 4 * 64 * min(chosen, 64)
    operators = counter.get_flop_counts()["Global"]
    assert operators[torch.ops.gossamer.attend_indexed] == 2 * pairs * (16 + 16)
    assert operators[torch.ops.gossamer.attend_indexed_backward] == 2 * pairs * (3 * 16 + 2 * 16)


def test_operations_of_latents_are_those_of_both_widths() -> None:
    q, latents = torch.zeros(1, 4, 64, 24, requires_grad=True), torch.zeros(1, 64, 24)
    with FlopCounterMode(display=False) as counter:
        attend_latent(q, latents, Selection(torch.zeros(1, 64, 5, dtype=torch.int64)), value_width=16)
    assert counter.get_total_flops() == 2 * 4 * 64 * 5 * (24 + 16)


@pytest.mark.parametrize("latent", [False, True])
def test_exported_programs_run_again(latent: bool) -> None:
    class Attends(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, indices: Tensor) -> Tensor:
            if latent:
                return attend_latent(q, k[:, 0], Selection(indices), value_width=6)
            return attend_indexed(q, k, k, Selection(indices))

    q, k, indices = torch.randn(1, 2, 9, 8), torch.randn(1, 1, 9, 8), torch.randint(9, (1, 9, 3))
    program = torch.export.export(Attends(), (q, k, indices))
    assert torch.equal(program.module()(q, k, indices), Attends()(q, k, indices))
