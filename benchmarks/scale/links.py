"""What a link between processes carries, and how long the smallest parcel takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from .clock import seconds_each
from .figures import Figure

SIZES = (2**10, 2**20, 2**22, 2**24, 2**28)


def link_figures(device: torch.device, *, small: bool) -> Iterator[Figure]:
    """To a neighbour, and collectives over all, by bytes that each process sends."""
    for nbytes in SIZES[: 2 if small else None]:
        for case, step in _cases(nbytes, device):
            yield Figure("links", case, dist.get_world_size(), nbytes, seconds_each(step, device, steps=5))


def _cases(nbytes: int, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    count, rank = dist.get_world_size(), dist.get_rank()
    x = torch.zeros(nbytes // 4, device=device)
    if count > 1:
        sent, come = [0] * count, [0] * count
        sent[(rank + 1) % count] = come[(rank - 1) % count] = len(x)
        y = torch.empty_like(x)
        yield "to a neighbour", lambda: dist.all_to_all_single(y, x, come, sent)
    whole = torch.empty(count * len(x), device=device)
    yield "all-gather", lambda: dist.all_gather_into_tensor(whole, x)
    yield "reduce-scatter", lambda: dist.reduce_scatter_tensor(x, whole)
    yield "all-reduce", lambda: dist.all_reduce(x)
