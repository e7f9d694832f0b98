"""The portable GPU road at chosen keys besides attention: an index's scores, and where heads look."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..chosen import Heads, Index
from ..inverse_lists import Rows, inverse_lists
from ..layout import empty_beside
from .backend import on, without_gpu
from .indexed_configs import FEWEST_ROWS, Kernel, config, widest
from .row_sums import RowSums, launch, up_to_power

LOG2E = 1.4426950408889634


class Triton:
    """Runs on any GPU that Triton compiles for, in float32, bfloat16 and float16."""

    name = "triton"

    def refuses(self, q: Tensor) -> str | None:
        """The first thing that these kernels do not do."""
        if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"inputs are {q.dtype}; it computes float32, bfloat16 and float16"
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        if q.shape[3] > widest(q.dtype):
            return f"heads are {q.shape[3]} wide; it computes {widest(q.dtype)} at most in {q.dtype}"
        return without_gpu(q.device)

    def scores(self, index: Index) -> Tensor:
        """[B, Q, n], as `Road` says."""
        from .chosen_scores import index_scores

        found = index.weights.new_empty(index.places.shape)
        with on(index.q.device):
            constants = _constants("scores", index.q, index.q.shape[1]) | {"RELU": index.relu}
            launch(index_scores, (_rows(index),), (*_tensors(index), found, *_sizes(index)), constants)
        return found

    def scores_backward(self, index: Index, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dweights), as `Road` says."""
        from ..rows import Matrix, Vector
        from .chosen_scores import index_scores_queries, index_scores_rows

        dq, dweights = empty_beside(index.q, index.q.shape[3]), torch.empty_like(index.weights)
        dk = index.k.new_empty(index.k[:, None].shape, dtype=torch.float32)
        tensors = *_tensors(index), grad.contiguous()
        queries, size = index.places.shape[1:]
        with on(index.q.device):
            constants = _constants("scores_queries", index.q, index.q.shape[1]) | {"RELU": index.relu}
            written = Matrix.of(dq), Vector.of(dweights.transpose(1, 2))
            grid = (_rows(index) * constants["PARTS"],)
            launch(index_scores_queries, grid, (*tensors, *written, *_sizes(index)), constants)
            constants = _constants("scores_rows", index.q, index.q.shape[1]) | {"RELU": index.relu}
            sums, rows = RowSums.of((dk,), queries, size, 1, index.q.dtype), Rows.standing(index.places)
            for some in sums.passes():
                lists = inverse_lists(rows, index.k.shape[1], some.first, some.last)
                for lane, lanes in some.lanes():
                    count = some.last - some.first
                    grid = (lanes * count * -(-size // constants["KEYS"]),)
                    numbers = *_sizes(index), some.first, count, lane
                    launch(index_scores_rows, grid, (*tensors, *sums.parts, *numbers), constants)
                    sums.add(lists, lane, lanes, adds=some.first > 0)
        return dq, dk[:, 0].to(index.k.dtype), dweights

    def refuses_mass(self, heads: Heads) -> str | None:
        """The first thing that its kernel does not do."""
        return self.refuses(heads.q)

    def mass(self, heads: Heads) -> Tensor:
        """[B, Q, n], as `MassRoad` says."""
        from ..rows import Matrix, Vector
        from .chosen_scores import attention_mass

        q, k, lse, places, scale = heads
        found, groups = torch.empty(places.shape, dtype=torch.float32, device=q.device), k.shape[1]
        repeats = q.shape[1] // groups
        with on(q.device):
            constants = _constants("mass", q, repeats)
            grid = (places.shape[:2].numel() * -(-places.shape[2] // constants["KEYS"]),)
            numbers = groups, repeats, *places.shape[1:], scale * LOG2E
            tensors = Matrix.of(q), Matrix.of(k), Vector.of(lse), places, found
            launch(attention_mass, grid, (*tensors, *numbers), constants)
        return found


TRITON_CHOSEN = Triton()


def _tensors(index: Index) -> tuple[Any, ...]:
    from ..rows import Matrix, Vector

    return Matrix.of(index.q), Matrix.of(index.k[:, None]), Vector.of(index.weights.transpose(1, 2)), index.places


def _sizes(index: Index) -> tuple[int, int, int]:
    """Heads, queries and places."""
    return index.q.shape[1], *index.places.shape[1:]


def _rows(index: Index) -> int:
    """Queries of all sequences."""
    return index.places.shape[:2].numel()


def _constants(kernel: Kernel, q: Tensor, heads: int) -> dict[str, Any]:
    """What is fixed when a kernel is compiled, for so many heads that share a query's keys."""
    tile = config(kernel, q.dtype, q.shape[3], heads)
    rows = min(tile.queries, up_to_power(heads, FEWEST_ROWS))
    return {
        "PARTS": -(-heads // rows), "WIDTH": q.shape[3], "ROWS": rows, "KEYS": tile.keys, "num_warps": tile.warps,
        "num_stages": tile.stages,
    }  # fmt: skip
