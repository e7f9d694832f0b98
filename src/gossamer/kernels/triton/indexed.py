"""The portable GPU road of indexed attention: which problems it takes, and how they become launches."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..indexed import Inputs, Returning
from ..inverse_lists import Rows, canonical, inverse_lists
from ..layout import empty_beside, empty_by_token
from .backend import on, without_gpu
from .indexed_configs import FEWEST_ROWS, Kernel, config, widest
from .row_sums import Lists, RowSums, launch, up_to_power

MOST_SPLITS = 16
"""Of a block's list, which one program would take long to go through."""
STEPS = 64
"""Of a list that is worth no split."""
USUAL = 8
"""Usual lists that one program may go through before the list is split."""


class Triton:
    """Runs on any GPU that Triton compiles for, in float32, bfloat16 and float16."""

    name = "triton"

    def refuses(self, given: Inputs, *, backward: bool) -> str | None:
        """The first thing that these kernels do not do."""
        if given.q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"inputs are {given.q.dtype}; it computes float32, bfloat16 and float16"
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        widths, most = (given.q.shape[3], given.value_width), widest(given.q.dtype)
        if max(widths) > most:
            return f"heads are {widths[0]} and {widths[1]} wide; it computes {most} at most in {given.q.dtype}"
        return without_gpu(given.q.device)

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(out, log-sum-exp), as `Road` says."""
        from ..rows import Matrix, Vector
        from .indexed_forward import indexed_forward

        batch, heads, queries, _ = given.q.shape
        out = empty_by_token(given.q, given.value_width)
        lse = given.q.new_empty(batch, heads, queries, dtype=torch.float32)
        work = Work.of(given)
        sinks = None if given.sinks is None else given.sinks.contiguous()
        constants, parts = work.by_query("forward")
        with on(given.q.device):
            tensors = *work.inputs, Matrix.of(out), Vector.of(lse), sinks
            launch(indexed_forward, (work.lanes * queries * parts,), (*tensors, *work.shared), constants)
        return out, lse

    def backward(self, given: Inputs, come: Returning) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of q, k and v, as `Road` says."""
        from ..rows import Matrix, Vector
        from .indexed_backward import indexed_backward_queries

        work, dq = Work.of(given), empty_beside(given.q, given.q.shape[3])
        deltas = torch.empty_like(come.lse)
        of_lse = None if come.grad_lse is None else Vector.of(come.grad_lse)
        constants, parts = work.by_query("backward_queries")
        with on(given.q.device):
            lse, grad_out = Vector.of(come.lse), Matrix.of(come.grad_out)
            tensors = *work.inputs, Matrix.of(come.out), lse, grad_out, of_lse, Matrix.of(dq), Vector.of(deltas)
            grid = (work.lanes * given.q.shape[2] * parts,)
            launch(indexed_backward_queries, grid, (*tensors, *work.shared), constants)
            returning = *work.inputs, lse, grad_out, Vector.of(deltas)
            dk, dv = work.by_block(returning) if work.rows.block > 1 else work.by_row(returning)
        if given.v is None and dv is not None:
            dk[..., : given.value_width] += dv
        return dq, dk.to(given.k.dtype), None if given.v is None or dv is None else dv.to(given.v.dtype)


TRITON_INDEXED = Triton()


class Chosen(NamedTuple):
    """`Rows` as kernels read them."""

    indices: Tensor
    counts: Tensor
    size: int
    runs: int


class Groups(NamedTuple):
    """Key heads of a sequence, and the query heads of each."""

    groups: int
    repeats: int


@dataclass(frozen=True, eq=False)
class Work:
    """What all launches of a call share."""

    given: Inputs
    rows: Rows
    inputs: tuple[Any, ...]
    """q, k and v."""
    shared: tuple[Any, ...]
    """What the kernels are told besides tensors."""

    @staticmethod
    def of(given: Inputs) -> Work:
        from ..rows import Matrix
        from .operands import Axes, Dropout, Scores

        (_, heads, queries, _), (_, groups, keys, _) = given.q.shape, given.k.shape
        rows = canonical(given.selection, keys)
        chosen = Chosen(rows.indices, rows.counts, rows.size, rows.indices.shape[1])
        dropout = Dropout.of(given.softmax, given.position, heads, 0)
        axes = Axes(queries, keys, given.position)
        shared = chosen, Groups(groups, heads // groups), axes, Scores.of(given.softmax), dropout
        return Work(given, rows, tuple(map(Matrix.of, (given.q, given.k, given.values))), shared)

    @property
    def lanes(self) -> int:
        """Key heads of all sequences."""
        return self.given.k.shape[0] * self.given.k.shape[1]

    @property
    def repeats(self) -> int:
        """Query heads of a key head."""
        return self.given.q.shape[1] // self.given.k.shape[1]

    @property
    def widths(self) -> tuple[int, int]:
        return self.given.q.shape[3], self.given.value_width

    @property
    def shares(self) -> bool:
        """Whether a tile of the keys' leading columns is one of values."""
        width, value_width = self.widths
        return (
            self.given.v is None
            and value_width & (value_width - 1) == 0
            and 16 <= value_width <= width < (2 * value_width)
        )

    def constants(self, kernel: Kernel) -> dict[str, Any]:
        """What is fixed when a kernel is compiled, whichever it is."""
        tile = config(kernel, self.given.q.dtype, max(self.widths), self.repeats, self.rows.block)
        return {
            "SHARED": self.shares, "BLOCK": self.rows.block, "CAUSAL": self.rows.causal, "WIDTH": self.widths[0],
            "VALUE_WIDTH": self.widths[1], "ROWS": tile.queries, "KEYS": tile.keys, "num_warps": tile.warps,
            "num_stages": tile.stages,
        }  # fmt: skip

    def by_query(self, kernel: Kernel) -> tuple[dict[str, Any], int]:
        """The same where a tile's rows are a query's heads, and how many tiles these take."""
        constants = self.constants(kernel)
        constants["ROWS"] = min(constants["ROWS"], up_to_power(self.repeats, FEWEST_ROWS))
        parts = -(-self.repeats // constants["ROWS"])
        return constants | {"PARTS": parts}, parts

    def by_block(self, returning: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
        """(dk, dv) of blocks: their owners meet the queries of their lists."""
        from ..rows import Matrix
        from .indexed_backward import indexed_backward_blocks

        (batch, _, keys, _), queries = self.given.k.shape, self.given.q.shape[2]
        constants = self.constants("backward_blocks")
        constants["KEYS"] = min(constants["KEYS"], up_to_power(self.rows.block, 16))
        constants["HEADS"] = min(constants["ROWS"], up_to_power(self.repeats, 1))
        blocks = self.rows.places(keys)
        splits = self._splits(queries, blocks, constants["ROWS"] // constants["HEADS"])
        dk, dv = self._sums(splits)
        lists = Lists.of(inverse_lists(self.rows, keys))
        tensors = *returning, Matrix.of(dk), None if dv is None else Matrix.of(dv)
        grid = self.lanes * blocks * -(-self.rows.block // constants["KEYS"]), splits
        launch(indexed_backward_blocks, grid, (*tensors, lists, *self.shared, batch, splits), constants)
        if splits > 1:
            dk, dv = (None if x is None else x.unflatten(0, (splits, batch)).sum(0) for x in (dk, dv))
        return dk, dv

    def _splits(self, queries: int, blocks: int, together: int) -> int:
        """Parts of each list: so many that one which holds every query is not much longer than a usual one."""
        usual = queries * min(self.rows.size, blocks) // max(blocks, 1)
        longest = max(USUAL * usual, STEPS * together)
        return max(1, min(MOST_SPLITS, -(-queries // longest)))

    def _sums(self, splits: int = 1) -> tuple[Tensor, Tensor | None]:
        """What gradients of keys and values are summed in: float32, and rounded at the end."""
        batch, groups, keys, _ = self.given.k.shape
        shape, like = (splits * batch, groups, keys), self.given.k
        dk = like.new_empty(*shape, self.widths[0], dtype=torch.float32)
        return dk, None if self.shares else like.new_empty(*shape, self.widths[1], dtype=torch.float32)

    def by_row(self, returning: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
        """(dk, dv) of keys: what comes to each from single queries is made first, and then summed."""
        from .indexed_backward import indexed_backward_rows

        keys, constants = self.given.k.shape[2], self.by_query("backward_rows")[0]
        dk, dv = self._sums()
        queries, runs = self.given.q.shape[2], self.rows.indices.shape[1]
        sums = RowSums.of((dk, dv), queries, self.rows.size, runs, self.given.q.dtype)
        for some in sums.passes():
            lists = inverse_lists(self.rows, keys, some.first, some.last)
            for lane, lanes in some.lanes():
                count = some.last - some.first
                grid = (lanes * count * -(-self.rows.size // constants["KEYS"]),)
                numbers = some.first, count, lane
                launch(indexed_backward_rows, grid, (*returning, *sums.parts, *self.shared, *numbers), constants)
                sums.add(lists, lane, lanes, adds=some.first > 0)
        return dk, dv
