"""What processes send one another, on its way while they compute."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .shards import Shards

Parcels = Sequence[Sequence[Tensor]]
"""For each rank some tensors."""

Form = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor."""

Forms = Sequence[Sequence[Form]]
"""For each rank those of some tensors."""


HEAD_START = 20_000
"""Cycles, about ten microseconds, that a GPU idles when a trip has begun. NCCL's kernel starts in them. Without them
attention, which is ready at the same moment, may take every multiprocessor first, and the trip begins when it ends."""


class Trip:
    """Tensors on their way: each process has sent some to each other one, and awaits some of each.

    One all-to-all carries them all, whatever their dtypes; one process alone needs no group. Between processes that
    send each other nothing nothing travels. What a process sends to itself must be empty: it has it.
    """

    def __init__(self, parcels: Parcels, awaited: Forms, shards: Shards, device: torch.device):
        """
        Args:
            parcels: For each rank what it is sent.
            awaited: For each rank the shapes and dtypes of what it sends here.
            device: Where all of it is, also where nothing is sent or awaited: processes must agree on who carries it.
        """
        self._awaited = awaited
        sent = [sum(_size(form_of(x)) for x in parcel) for parcel in parcels]
        self._come = [sum(map(_size, forms)) for forms in awaited]
        self._packed = _packed([x for parcel in parcels for x in parcel], sum(sent), device)
        self._buffer = torch.empty(sum(self._come), dtype=torch.uint8, device=device)
        self._work: dist.Work | None = None
        if shards.count > 1:
            self._work = dist.all_to_all_single(
                self._buffer, self._packed, self._come, sent, group=shards.group, async_op=True
            )
            if device.type == "cuda":
                torch.cuda._sleep(HEAD_START)
        shards.traffic.nbytes += sum(sent)
        shards.traffic.messages += sum(size > 0 for size in sent)

    def arrive(self) -> list[list[Tensor]]:
        """For each rank what it has sent; on a GPU the current stream waits for it, and not the host."""
        if self._work is not None:
            self._work.wait()
        buffers = self._buffer.split(self._come)
        return [list(_unpacked(buffer, forms)) for buffer, forms in zip(buffers, self._awaited, strict=True)]


def exchanged(parcels: Parcels, awaited: Forms, shards: Shards, device: torch.device) -> list[list[Tensor]]:
    """For each rank what it has sent, waited for; what a process has for itself it keeps."""
    rank = shards.rank
    sent = [[] if to == rank else parcel for to, parcel in enumerate(parcels)]
    come = Trip(sent, [[] if of == rank else forms for of, forms in enumerate(awaited)], shards, device).arrive()
    come[rank] = list(parcels[rank])
    return come


def form_of(x: Tensor) -> Form:
    """Its shape and dtype."""
    return tuple(x.shape), x.dtype


ALIGNED = 16
"""Each tensor begins at a multiple of as many bytes, so that kernels read it as they would memory of its own."""


def _size(form: Form) -> int:
    shape, dtype = form
    return -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED


def _packed(tensors: Sequence[Tensor], size: int, device: torch.device) -> Tensor:
    """The tensors behind one another, each read and written once."""
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    for slot, x in zip(_unpacked(buffer, [form_of(x) for x in tensors]), tensors, strict=True):
        slot.copy_(x)
    return buffer


def _unpacked(buffer: Tensor, forms: Sequence[Form]) -> Iterator[Tensor]:
    for part, (shape, dtype) in zip(buffer.split([_size(form) for form in forms]), forms, strict=True):
        yield part[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
