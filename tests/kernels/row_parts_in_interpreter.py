"""Runs the kernels of `kernels/hopper/row_parts.py` beside PyTorch, and prints what fails as JSON.

A program of its own, because Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tests.kernels.interpreter import tell

CANARY = 17.0
BATCH, HEADS, USED = 3, 4, slice(1, 3)


@dataclass(frozen=True)
class Case:
    """Rows of blocks in parts, and the tensors that they belong to."""

    length: int = 310
    """Not a multiple of a block: the last long row is short of some positions."""
    size: int = 64
    width: int = 64
    parts: tuple[int, ...] = (3, 2, 1)
    places: tuple[int, ...] = (0, 3, 4)
    within: bool = False
    heads_inside: bool = False
    dtype: torch.dtype = torch.float16

    def long(self, device: str):
        """As a table has them: its lists, and what its rows are copies of, count for nothing here."""
        from gossamer.kernels.block_tables import BlockTable
        from gossamer.kernels.hopper.long_rows import LongRows

        edges = torch.tensor((0, *self.parts)).cumsum(0).int().to(device)
        nothing = torch.zeros(0, dtype=torch.int32, device=device)
        table = BlockTable(self.size, nothing, nothing, nothing, None, None, nothing, nothing)
        return LongRows(table, edges, torch.tensor(self.places, dtype=torch.int32, device=device), nothing.long())

    def ends(self, device: str) -> Tensor | None:
        """int32 [B, 2]: some in all long rows, in none, and all."""
        ends = torch.tensor([[20, 300], [100, 150], [0, 310]], dtype=torch.int32, device=device)
        return ends if self.within else None

    def drawn_parts(self, device: str) -> tuple[Tensor, Tensor]:
        """(out, lse) of the parts: some see nothing, and the rows that belong to no position are not a number."""
        shape = BATCH, USED.stop - USED.start, sum(self.parts) * self.size
        out, lse = torch.randn(*shape, self.width).to(self.dtype), 3 * torch.randn(shape)
        lse[torch.rand(shape) < 0.2] = -torch.inf
        out[:, :, -(self.size - self.length % self.size) :] = torch.nan
        lse[:, :, -(self.size - self.length % self.size) :] = torch.nan
        return out.to(device), lse.to(device)

    def room(self, device: str) -> tuple[Tensor, Tensor]:
        """(some heads [B, H, N, width] of a larger tensor, all of its memory), all of which is canaries."""
        shape = (
            (BATCH, self.length, HEADS, self.width) if self.heads_inside else (BATCH, HEADS, self.length, self.width)
        )
        room = torch.full(shape, CANARY, dtype=self.dtype, device=device)
        return (room.transpose(1, 2) if self.heads_inside else room)[:, USED], room


def check_merged(case: Case, device: str = "cpu") -> None:
    """Long rows get the softmax over their parts and what stands there before; nothing else is written."""
    from gossamer.kernels.hopper import row_parts
    from tests.kernels import row_parts_in_torch

    parts, results = case.drawn_parts(device), []
    before = torch.where(torch.rand(BATCH, HEADS, case.length) < 0.5, -torch.inf, torch.randn(HEADS, 1)).to(device)
    for module in (row_parts, row_parts_in_torch):
        (out, room), lse = case.room(device), before.clone()
        module.write_merged(parts, case.long(device), out, lse[:, USED], case.ends(device))
        results.append((room, lse))
    (out, lse), (right, right_lse) = results
    rounding = torch.finfo(case.dtype).eps  # sums of other orders may round to the next number
    torch.testing.assert_close(out.float(), right.float(), rtol=rounding, atol=1e-6)
    torch.testing.assert_close(lse, right_lse, rtol=1e-6, atol=1e-6)


def check_summed(case: Case, device: str = "cpu") -> None:
    """Long rows get the sums over their parts, of a fixed order; nothing else is written."""
    from gossamer.kernels.hopper import row_parts
    from tests.kernels import row_parts_in_torch

    (parts, _), rooms = case.drawn_parts(device), []
    for module in (row_parts, row_parts_in_torch):
        total, room = case.room(device)
        module.write_sums(parts, case.long(device), total, case.ends(device))
        rooms.append(room)
    torch.testing.assert_close(*(x.float() for x in rooms), rtol=torch.finfo(case.dtype).eps, atol=1e-6)


CASES = {
    "usual": Case(),
    "within ends": Case(within=True),
    "heads inside positions": Case(heads_inside=True, within=True),
    "blocks of 128": Case(size=128, places=(0, 1, 2), width=128),
    "narrow": Case(width=8),
    "40 wide": Case(width=40, heads_inside=True),
    "one long row": Case(parts=(5,), places=(4,)),
}
CHECKS = {
    **{f"merged: {name}": partial(check_merged, case) for name, case in CASES.items()},
    **{f"summed: {name}": partial(check_summed, case) for name, case in CASES.items()},
}


if __name__ == "__main__":
    tell(CHECKS)
