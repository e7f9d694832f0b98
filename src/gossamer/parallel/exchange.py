"""What processes send one another, on its way while they compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .shards import Shards

Parcels = Sequence[Sequence[Tensor]]
"""For each rank some tensors."""

Forms = Sequence[Sequence[tuple[tuple[int, ...], torch.dtype]]]
"""For each rank the shapes and dtypes of some tensors."""


class Trip:
    """Tensors on their way: each process has sent some to each other one, and awaits some of each.

    One all-to-all carries them all, whatever their dtypes. Between processes that send each other nothing nothing
    travels. What a process sends to itself must be empty: it has it.
    """

    def __init__(self, parcels: Parcels, awaited: Forms, shards: Shards):
        """
        Args:
            parcels: For each rank what it is sent.
            awaited: For each rank the shapes and dtypes of what it sends here.
        """
        self._awaited = awaited
        device = next((x.device for parcel in parcels for x in parcel), torch.device("cpu"))
        packed = [torch.cat([_bytes(x) for x in parcel]) if parcel else _empty(0, device) for parcel in parcels]
        sent = [len(parcel) for parcel in packed]
        self._come = [sum(_size(form) for form in forms) for forms in awaited]
        self._packed, self._buffer = torch.cat(packed), _empty(sum(self._come), device)
        self._work = dist.all_to_all_single(
            self._buffer, self._packed, self._come, sent, group=shards.group, async_op=True
        )
        shards.traffic.nbytes += sum(sent)
        shards.traffic.messages += sum(size > 0 for size in sent)

    def arrive(self) -> list[list[Tensor]]:
        """For each rank what it has sent; on a GPU the current stream waits for it, and not the host."""
        if self._work is not None:
            self._work.wait()
        found = []
        for forms, buffer in zip(self._awaited, self._buffer.split(self._come), strict=True):
            parts = buffer.split([_size(form) for form in forms])
            found.append([_tensor(part, *form) for part, form in zip(parts, forms, strict=True)])
        return found


def _empty(count: int, device: torch.device) -> Tensor:
    return torch.empty(count, dtype=torch.uint8, device=device)


ALIGNED = 16
"""Each tensor begins at a multiple of as many bytes, so that kernels read it as they would its own memory."""


def _size(form: tuple[tuple[int, ...], torch.dtype]) -> int:
    shape, dtype = form
    return -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED


def _bytes(x: Tensor) -> Tensor:
    flat = x.contiguous().view(-1).view(torch.uint8)
    missing = -len(flat) % ALIGNED
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


def _tensor(part: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return part[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
