"""The portable GPU road of hashed attention: one launch for each round, which goes on from what earlier ones left."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...selectors.rounds import SortedRounds
from ..hashed import Forwarded, Scores
from ..layout import empty_beside
from .backend import on, without_gpu
from .configs import HASHED_HALF, HASHED_SINGLE, WIDEST, Config, Kernel

LOG2E = 1.4426950408889634


class Sorted(NamedTuple):
    """`SortedRounds` as kernels read them: without gaps, and with their sizes."""

    order: Tensor
    place: Tensor | None
    start: Tensor | None
    stop: Tensor | None
    count: Tensor | None
    length: int
    rounds: int
    chunks: int


class Triton:
    """Runs on any GPU that Triton compiles for, in float32, bfloat16 and float16."""

    name = "triton"

    def refuses(self, x: Tensor, v: Tensor) -> str | None:
        """The first thing that these kernels do not do."""
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"inputs are {x.dtype}; it computes float32, bfloat16 and float16"
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        if max(x.shape[-1], v.shape[-1]) > WIDEST:
            return f"heads are {x.shape[-1]} and {v.shape[-1]} wide; it computes {WIDEST} at most"
        return without_gpu(x.device)

    def hash(self, x: Tensor, rotations: Tensor, counts: tuple[int, ...]) -> Tensor:
        """The buckets of vectors that it does not refuse."""
        from .hashing import hashed

        return hashed(x, rotations, counts)

    def forward(self, x: Tensor, v: Tensor, rounds: SortedRounds, scores: Scores) -> tuple[Tensor, Tensor]:
        """(out, log-sum-exp), as `Road` says."""
        from ..rows import Matrix, Vector
        from .hashed_forward import forward
        from .hashed_units import units as units_of

        work = Work.of(x, v, rounds, scores)
        out, lse = empty_beside(v, v.shape[-1]), x.new_empty(x.shape[:-1], dtype=torch.float32)
        held = _held(v) if work.rounds > 1 else out
        with on(x.device):
            units = Vector.of(units_of(x, scores))
            for turn in range(work.rounds):
                target = out if turn == work.rounds - 1 else held
                tensors = Matrix.of(x), Matrix.of(v), units, Matrix.of(held), Matrix.of(target), Vector.of(lse)
                numbers = work.sorted, turn, x.shape[1], scores.scale * LOG2E
                constants = work.constants("forward") | {"FIRST": turn == 0}
                forward[work.grid(constants["QUERIES"])](*tensors, *numbers, **constants)
        return out, lse

    def backward(
        self, saved: Forwarded, grad_out: Tensor, grad_lse: Tensor | None, rounds: SortedRounds, scores: Scores
    ) -> tuple[Tensor, Tensor]:
        """(gradient of x, gradient of v), as `Road` says."""
        from ..rows import Matrix, Vector
        from .hashed_backward import backward_keys, backward_queries
        from .hashed_units import units as units_of

        x, v = saved.x, saved.v
        work = Work.of(x, v, rounds, scores)
        dx, dv = empty_beside(x, x.shape[-1]), empty_beside(v, v.shape[-1])
        of_queries = _held(x)
        held, held_values = (_held(x), _held(v)) if work.rounds > 1 else (dx, dv)
        lse, deltas = (Vector.of(y) for y in (saved.lse, torch.empty_like(saved.lse)))
        come = None if grad_lse is None else Vector.of(grad_lse)
        numbers = x.shape[1], scores.scale * LOG2E, scores.scale
        with on(x.device):
            inputs = Matrix.of(x), Matrix.of(v), Vector.of(units_of(x, scores))
            for turn in range(work.rounds):
                constants = work.constants("backward_queries") | {"FIRST": turn == 0}
                tensors = Matrix.of(saved.out), lse, Matrix.of(grad_out), come, Matrix.of(of_queries), deltas
                launch = backward_queries[work.grid(constants["QUERIES"])]
                launch(*inputs, *tensors, work.sorted, turn, *numbers, **constants)
            for turn in range(work.rounds):
                ends = {"FIRST": turn == 0, "LAST": turn == work.rounds - 1}
                constants = work.constants("backward_keys") | ends
                tensors = lse, Matrix.of(grad_out), deltas, *map(Matrix.of, (of_queries, held, held_values, dx, dv))
                launch = backward_keys[work.grid(constants["KEYS"])]
                launch(*inputs, *tensors, work.sorted, turn, *numbers, **constants)
        return dx, dv


TRITON_HASHED = Triton()


@dataclass(frozen=True, eq=False)
class Work:
    """What all launches of a call share."""

    sorted: Sorted
    lanes: int
    fixed: dict[str, Any]
    """What is fixed when a kernel is compiled, whichever it is."""
    configs: dict[Kernel, dict[int, Config]]

    @staticmethod
    def of(x: Tensor, v: Tensor, rounds: SortedRounds, scores: Scores) -> Work:
        batch, heads, turns, length = rounds.order.shape
        chunks = scores.chunks
        tensors = (None if y is None else y.contiguous() for y in rounds)
        fixed = {
            "CAUSAL": chunks.causal, "EDGE": chunks.edge, "ROUNDS": turns, "SIZE": chunks.size,
            "BEFORE": chunks.before, "MET": chunks.met(length, turns),
            "WIDTH": x.shape[-1], "VALUE_WIDTH": v.shape[-1],
        }  # fmt: skip
        configs = HASHED_SINGLE if x.dtype == torch.float32 else HASHED_HALF
        return Work(Sorted(*tensors, length, turns, chunks.count(length)), batch * heads, fixed, configs)

    @property
    def rounds(self) -> int:
        return self.sorted.rounds

    def constants(self, kernel: Kernel) -> dict[str, Any]:
        """Everything that is fixed when a kernel is compiled. No tile is twice as large as a chunk."""
        table, wider = self.configs[kernel], max(self.fixed["WIDTH"], self.fixed["VALUE_WIDTH"])
        tile = table[min(widest for widest in table if wider <= widest)]
        most = max(16, 1 << (self.fixed["SIZE"] - 1).bit_length())
        sizes = {"QUERIES": min(tile.queries, most), "KEYS": min(tile.keys, most)}
        return self.fixed | sizes | {"num_warps": tile.warps, "num_stages": tile.stages}

    def grid(self, tile: int) -> tuple[int]:
        """One program for each tile of each chunk of each head."""
        return (self.lanes * self.sorted.chunks * -(-self.fixed["SIZE"] // tile),)


def _held(x: Tensor) -> Tensor:
    """Sums that several launches add to: in float32, and rounded once, at the end."""
    return torch.empty_like(empty_beside(x, x.shape[-1]), dtype=torch.float32)
