"""Runs the kernel of `kernels/hopper/row_shares.py` beside PyTorch, and prints what fails as JSON.

As a program it runs it on the CPU, in Triton's interpreter; the tests on a GPU take the same checks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.kernels import row_shares_in_torch
from tests.kernels.interpreter import failure, repair_interpreter

CANARY = 17.0
BATCH, HEADS, USED, LENGTH = 2, 4, slice(1, 3), 50


@dataclass(frozen=True)
class Case:
    """Rows, and the shares in which they were computed."""

    queries: tuple[int, ...] = (0, 7, 49)
    shares: int = 3
    rows: int = 64
    """Of each share, the wanted ones first."""
    width: int = 64
    heads_inside: bool = False
    dtype: torch.dtype = torch.float16
    sinks: bool = False

    def head_slice(self, device: str, *width: int) -> tuple[Tensor, Tensor]:
        """(some heads [B, H, N, …] of a larger tensor, all of its memory), which is canaries."""
        dtype = self.dtype if width else torch.float32
        inside = self.heads_inside and width
        shape = (BATCH, LENGTH, HEADS, *width) if inside else (BATCH, HEADS, LENGTH, *width)
        room = torch.full(shape, CANARY, dtype=dtype, device=device)
        return (room.transpose(1, 2) if inside else room)[:, USED], room

    def parts(self, device: str) -> Tensor:
        """What is not wanted is NaN."""
        shape = BATCH, USED.stop - USED.start, self.shares, self.rows, self.width
        parts = torch.randn(shape).to(self.dtype)
        parts[:, :, :, len(self.queries) :] = torch.nan
        return parts.flatten(2, 3).to(device)

    def part_lse(self, device: str) -> Tensor:
        """A share that shows nothing, a row that sees nothing, and numbers that are far apart."""
        lse = torch.randn(BATCH, USED.stop - USED.start, self.shares, self.rows) * 30
        lse[:, :, -1] = -torch.inf
        lse[:, 0, :, 0] = -torch.inf
        return lse.flatten(2).to(device)


def check_joined(case: Case, device: str = "cpu") -> None:
    """One softmax over all shares, written to the wanted rows alone."""
    from gossamer.kernels.hopper import row_shares

    queries = torch.tensor(case.queries, device=device)
    parts, part_lse = case.parts(device), case.part_lse(device)
    parts.masked_fill_((part_lse == -torch.inf)[..., None] & parts.isfinite(), 0.0)
    sinks = torch.randn(USED.stop - USED.start).to(device) if case.sinks else None
    (out, out_room), (lse, lse_room) = case.head_slice(device, case.width), case.head_slice(device)
    row_shares.write_joined(parts, part_lse, sinks, out, lse, queries, shares=case.shares)
    found = out_room.clone(), lse_room.clone()
    for room in (out_room, lse_room):
        room.fill_(CANARY)
    row_shares_in_torch.write_joined(parts, part_lse, sinks, out, lse, queries, shares=case.shares)
    assert (lse == -torch.inf).any() != case.sinks
    for made, right in zip(found, (out_room, lse_room), strict=True):
        torch.testing.assert_close(made, right, rtol=2e-3 if made.dtype == torch.float16 else 1e-5, atol=1e-3)


def check_sums(case: Case, device: str = "cpu") -> None:
    """The sum of all shares, written to the wanted rows alone."""
    from gossamer.kernels.hopper import row_shares

    queries, parts = torch.tensor(case.queries, device=device), case.parts(device)
    x, room = case.head_slice(device, case.width)
    row_shares.write_sums(parts, x, queries, shares=case.shares)
    found = room.clone()
    room.fill_(CANARY)
    row_shares_in_torch.write_sums(parts, x, queries, shares=case.shares)
    torch.testing.assert_close(found, room, rtol=2e-3, atol=2e-3)


def check_taken(case: Case, device: str = "cpu") -> None:
    """The rows of all tensors come in the order asked for, and the others' log-sum-exp lacks those that are absent."""
    from gossamer.kernels.hopper import row_shares
    from gossamer.kernels.hopper.operands import Results

    queries = torch.tensor(case.queries * case.shares, device=device)
    absent = torch.zeros(LENGTH, dtype=torch.bool, device=device)
    absent[queries] = True
    q, out, grad_out = (case.head_slice(device, case.width)[0] for _ in range(3))
    lse, grad_lse = (case.head_slice(device)[0] for _ in range(2))
    for x in (q, out, grad_out, lse, grad_lse):
        x.copy_(torch.randn(x.shape))
    found = row_shares.gathered(q, queries)
    assert torch.equal(found, q[:, :, queries]) and found.is_contiguous()
    for results in (Results(out, lse, grad_out, None), Results(out, lse, grad_out, grad_lse)):
        found, some, others = row_shares.taken(q, results, queries, absent)
        for made, x in zip((found, *some), (q, *results), strict=True):
            assert made is x is None or (torch.equal(made, x[:, :, queries]) and made.is_contiguous())
        assert torch.equal(others, lse.masked_fill(absent, -torch.inf)) and others.is_contiguous()


CASES = {
    "three rows": Case(),
    "sinks": Case(sinks=True, heads_inside=True),
    "one row": Case(queries=(3,), shares=2, rows=192),
    "many shares": Case(queries=(5, 6), shares=37),
    "40 wide": Case(width=40, heads_inside=True, sinks=True),
    "128 wide": Case(width=128, shares=17),
}
CHECKS = {
    **{f"taken: {name}": partial(check_taken, case) for name, case in CASES.items()},
    **{f"joined: {name}": partial(check_joined, case) for name, case in CASES.items()},
    **{f"sums: {name}": partial(check_sums, case) for name, case in CASES.items() if not case.sinks},
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    repair_interpreter()
    print(json.dumps({name: failure(check) for name, check in CHECKS.items()}))
