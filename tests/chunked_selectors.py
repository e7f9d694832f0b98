"""What every selector shall do that scores blocks: no tensor of all pairs, chunks that change nothing, no gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Select = Callable[..., Tensor]


class _Largest(TorchDispatchMode):
    """The most numbers that any new tensor has."""

    numbers = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and not func.is_view:
                self.numbers = max(self.numbers, x.numel())
        return out


def check_chunks(select: Select, monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    """Small chunks give the same choice, and with one query at a time no tensor has `cells` numbers."""
    whole = select()
    for most in (1, 500, 3000):
        monkeypatch.setattr("gossamer.selectors.block_topk.CELLS", most)
        assert torch.equal(select(), whole)
    monkeypatch.setattr("gossamer.selectors.block_topk.CELLS", 1)
    with _Largest() as largest:
        select()
    assert 0 < largest.numbers < cells, f"a tensor of {largest.numbers} numbers was made"
