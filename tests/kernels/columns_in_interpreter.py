"""Runs the kernels of `kernels/hopper/columns.py` beside PyTorch, and prints what fails as JSON.

As a program it runs them on the CPU, in Triton's interpreter: of its own, because Triton decides when it is imported
whether it compiles or interprets. The interpreter cuts bfloat16 off where a GPU rounds it, so that there its numbers
are small integers, whose sums are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from tests.kernels import columns_in_torch
from tests.kernels.interpreter import tell

CANARY, ROOM = 17.0, 64
BATCH, HEADS, USED = 2, 6, slice(1, 4)


@dataclass(frozen=True)
class Case:
    """Keys and their order, and the tensors that belong to them."""

    keys: int = 150
    step: int | None = 7
    """0 where no key is in the order, None where all are, as they stand."""
    dilation: int = 1
    """Keys that stand side by side in the order were that many apart among them: more than 1 leaves them unsorted."""
    parts: int = 3
    copies: int = 1
    """How often the order stands in each part."""
    width: int = 64
    value_width: int = 64
    heads_inside: bool = False
    dtype: torch.dtype = torch.float16
    integers: bool = False

    def order(self, device: str) -> Tensor | None:
        """int64, or None for all keys as they stand."""
        if self.step is None:
            return None
        keys = torch.arange(0, self.keys, self.step) if self.step else torch.arange(0)
        return torch.cat([keys[first :: self.dilation] for first in range(self.dilation)]).to(device)

    def outside(self, device: str) -> Tensor | None:
        """The keys that the order lacks, None where that are none."""
        order = self.order(device)
        outside = torch.ones(self.keys, dtype=torch.bool, device=device)
        outside[slice(None) if order is None else order] = False
        return outside if outside.any() else None

    def drawn(self, *shape: int, device: str) -> Tensor:
        numbers = torch.randint(-8, 9, shape).float() if self.integers else torch.randn(shape)
        return numbers.to(device)

    def head_slice(self, width: int, device: str) -> tuple[Tensor, Tensor]:
        """(some heads [B, G, K, width] of a larger tensor, all of its memory), the rest of which is canaries."""
        shape = (BATCH, self.keys + 8, HEADS, width) if self.heads_inside else (BATCH, HEADS, self.keys + 8, width)
        room = torch.full(shape, CANARY, dtype=self.dtype, device=device)
        heads = (room.transpose(1, 2) if self.heads_inside else room)[:, USED, 4:-4]
        heads.copy_(self.drawn(*heads.shape, device=device))
        return heads, room

    def drawn_parts(self, device: str) -> tuple[Tensor, Tensor]:
        order = self.order(device)
        count = self.keys if order is None else len(order)
        shape = self.parts, BATCH, USED.stop - USED.start, self.copies * count
        return tuple(self.drawn(*shape, width, device=device) for width in (self.width, self.value_width))


def check_gathered(case: Case, device: str = "cpu") -> None:
    """The rows come in their order, other rows are not looked at, and nothing beside the result is written."""
    from gossamer.kernels.hopper.columns import gathered

    order, rooms, new_empty = case.order(device), [], torch.Tensor.new_empty

    def between_canaries(x: Tensor, *shape: int, **options: object) -> Tensor:
        if options:  # the interpreter's own
            return new_empty(x, *shape, **options)
        rooms.append(x.new_full((math.prod(shape) + 2 * ROOM,), CANARY))
        return rooms[-1][ROOM:-ROOM].view(shape)

    (k, _), (v, _) = (case.head_slice(width, device) for width in (case.width, case.value_width))
    outside = case.outside(device)
    if outside is not None:
        k[:, :, outside] = v[:, :, outside] = torch.nan
    with mock.patch.object(torch.Tensor, "new_empty", between_canaries):
        found = gathered(k, v, order)
    for made, right in zip(found, columns_in_torch.gathered(k, v, order), strict=True):
        assert made.is_contiguous() and torch.equal(made, right)
    assert len(rooms) == 2
    for room in rooms:
        assert (room[:ROOM] == CANARY).all() and (room[-ROOM:] == CANARY).all()


def check_written(case: Case, device: str = "cpu") -> None:
    """Every row gets its sum or zero, whatever it was, and nothing beside the heads is written."""
    _check_put("write_sums", case, device, case.outside(device))


def check_added(case: Case, device: str = "cpu") -> None:
    """The order's rows alone are added to; the others stay the very bits that they were."""
    _check_put("add_sums", case, device)


def _check_put(name: str, case: Case, device: str, *outside: Tensor | None) -> None:
    from gossamer.kernels.hopper import columns

    parts, order = case.drawn_parts(device), case.order(device)
    (dk, dk_room), (dv, dv_room) = (case.head_slice(width, device) for width in (case.width, case.value_width))
    poisoned = slice(None) if outside else case.outside(device)
    if poisoned is not None:
        dk[:, :, poisoned] = dv[:, :, poisoned] = torch.nan
    before = dk_room.clone(), dv_room.clone()
    getattr(columns, name)(parts, dk, dv, order, *outside)
    found = dk_room.clone(), dv_room.clone()
    for room, was in zip((dk_room, dv_room), before, strict=True):
        room.copy_(was)
    getattr(columns_in_torch, name)(parts, dk, dv, order, *outside)
    for made, right in zip(found, (dk_room, dv_room), strict=True):
        torch.testing.assert_close(made, right, rtol=0, atol=0, equal_nan=True)


CASES = {
    "sorted": Case(),
    "one part": Case(parts=1),
    "every key twice": Case(copies=2),
    "every key twice, 40 and 128 wide": Case(copies=2, parts=1, width=40, value_width=128, heads_inside=True),
    "heads inside positions": Case(heads_inside=True),
    "unsorted": Case(dilation=3),
    "all keys, unsorted": Case(step=1, dilation=4, heads_inside=True),
    "all keys as they stand": Case(step=None),
    "no keys in the order": Case(step=0),
    "one key": Case(step=150),
    "narrow": Case(keys=300, width=8, value_width=8),
    "40 and 128 wide": Case(width=40, value_width=128, heads_inside=True),
    "128 and 40 wide": Case(width=128, value_width=40, dilation=2),
    "128 wide": Case(width=128, value_width=128, parts=5),
    "bfloat16": Case(dtype=torch.bfloat16, integers=True, heads_inside=True),
    "bfloat16, 128 and 64 wide": Case(dtype=torch.bfloat16, integers=True, width=128, dilation=5),
}
CHECKS = {
    **{f"gathered: {name}": partial(check_gathered, case) for name, case in CASES.items() if case.step is not None},
    **{f"written: {name}": partial(check_written, case) for name, case in CASES.items()},
    **{f"added: {name}": partial(check_added, case) for name, case in CASES.items()},
}


if __name__ == "__main__":
    tell(CHECKS)
