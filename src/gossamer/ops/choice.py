"""Which backend runs a call: settled once for each kind of call."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import Backend, Problem, Softmax, choose
from ..patterns.base import Pattern
from ..patterns.parse import parse
from ..plan import Plan, plan, shortened

logger = logging.getLogger(__name__)


class Call(NamedTuple):
    """What of a call decides how it runs; a tuple, because one is made and hashed at every call."""

    pattern: str
    definitions: int
    q: torch.Size
    k: torch.Size
    v: torch.Size
    device: torch.device
    dtype: torch.dtype
    scale: float
    softcap: float
    dropout: float
    has_sinks: bool
    lengths: bool
    within: bool
    runs: bool
    block: int
    backward: bool = False

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, pattern: str, softmax: Softmax) -> Call:
        return cls(
            pattern, Pattern.definitions, q.shape, k.shape, v.shape, q.device, q.dtype,
            softmax.scale, softmax.softcap, softmax.dropout, sinks is not None, softmax.lengths is not None,
            softmax.within is not None, softmax.runs is not None, 0 if softmax.blocks is None else softmax.blocks.size,
        )  # fmt: skip

    @property
    def problem(self) -> Problem:
        """The same for a backend to judge."""
        _, heads, queries, width = self.q
        return Problem(
            plan=plan(parse(self.pattern), queries, self.k[2], heads),
            device=self.device,
            dtype=self.dtype,
            batch=self.q[0],
            key_heads=self.k[1],
            width=width,
            value_width=self.v[3],
            scale=self.scale,
            softcap=self.softcap,
            dropout=self.dropout,
            has_sinks=self.has_sinks,
            lengths=self.lengths,
            within=self.within,
            runs=self.runs,
            block=self.block,
            backward=self.backward,
        )


def problem_of(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, pattern: str, softmax: Softmax) -> Problem:
    """What a call of `attend` asks of a backend, forward."""
    return Call.of(q, k, v, sinks, pattern, softmax).problem


@lru_cache(maxsize=256)
def choice(call: Call, name: str | None) -> tuple[Plan, Backend]:
    """The plan of a call and the backend that runs it, kept for the last 256 kinds of call."""
    problem = call.problem
    found = choose(problem, name)
    if logger.isEnabledFor(logging.DEBUG):
        what = "attend_runs" if call.runs else "attend_blocks" if call.block else "attend"
        what += "_backward" if call.backward else ""
        logger.debug("%s %s: %s\nruns on %s", what, tuple(call.q), shortened(parse(call.pattern)), found)
    return problem.plan, found.taken()
