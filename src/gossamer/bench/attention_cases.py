"""Attention by itself: forward, forward with backward, and what a call costs the host."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..patterns import Pattern
from ..plan import plan
from .backends import Backends, forward_backends, training_backends
from .case import Case, Contender, Step
from .clock import launch_clock_for
from .config import TITLES
from .contenders import Attention
from .floor import Work
from .gate import AttentionFunction, Trial, fault, last_rows_fault
from .setting import Setting

Judge = Callable[[Attention], str | None]
Problem = list[Tensor]
"""q, k, v and the gradient of the output."""

LONGEST_TRIAL = 2081
"""The longest problem for the dense float64 oracle; a wider window is judged on it as far as it reaches."""

LAUNCH_LENGTH = 512
"""Tokens of the problem on which a launch is timed: few, yet more than the usual window sees, which is dense else."""


@dataclass(frozen=True)
class Pass:
    """What one step of a case computes.

    Args:
        step: Makes a step of an attention and a problem.
        results: The names of what a step returns.
        matrices: n×n matrices that textbook attention holds at once.
        products: Matrix products in units of the forward's two.
        query_tensors: Tensors of the queries' shape that are read or written at least.
        key_tensors: The same of the keys' shape.
        backends: What runs it of this library, for a setting, a pattern and a length.
    """

    step: Callable[[AttentionFunction, Problem], Step]
    results: tuple[str, ...]
    matrices: int
    products: float
    query_tensors: int
    key_tensors: int
    backends: Callable[[Setting, Pattern, int], Backends]


def _forward_step(attention: AttentionFunction, problem: Problem) -> Step:
    q, k, v, _ = problem

    def step() -> Tensor:
        with torch.no_grad():
            return attention(q, k, v)

    return step


def _training_step(attention: AttentionFunction, problem: Problem) -> Step:
    *inputs, dout = problem
    leaves = [x.detach().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(attention(*leaves), leaves, dout)


FORWARD = Pass(
    _forward_step, ("output",), matrices=3, products=1, query_tensors=2, key_tensors=2, backends=forward_backends
)
TRAINING = Pass(
    _training_step,
    ("dq", "dk", "dv"),
    matrices=4,
    products=3.5,
    query_tensors=6,
    key_tensors=6,
    backends=training_backends,
)


def forward_case(setting: Setting, rivals: tuple[Attention, ...], judge: Judge) -> Case:
    """Attention of random q, k, v, without a graph for the backward pass."""
    contenders = _contenders(setting, rivals, judge, FORWARD)
    return Case(TITLES["forward"], setting.config.lengths, contenders)


def training_case(setting: Setting, rivals: tuple[Attention, ...], judge: Judge) -> Case:
    """Attention of random q, k, v and its gradients in all three for a random output gradient."""
    contenders = _contenders(setting, rivals, judge, TRAINING)
    return Case(TITLES["training"], setting.config.lengths, contenders)


def launch_case(setting: Setting, rivals: tuple[Attention, ...], judge: Judge) -> Case:
    """The host's time for one forward call on an idle GPU; on a CPU, the whole call."""
    tiny = Setting(replace(setting.config, batch=1, tokens=None))
    contenders = tuple(replace(c, work=None) for c in _contenders(tiny, rivals, judge, FORWARD))
    return Case(TITLES["launch"], (LAUNCH_LENGTH,), contenders, launch_clock_for)


def _contenders(setting: Setting, rivals: tuple[Attention, ...], judge: Judge, job: Pass) -> tuple[Contender, ...]:
    draw = lru_cache(maxsize=1)(setting.draw)
    return tuple(
        Contender(
            name=rival.name,
            prepare=lambda n, rival=rival: job.step(rival.at(n), draw(n)),
            fault=partial(judge, rival),
            missing=rival.missing,
            needs=partial(_needs, setting, rival, job),
            fault_at=lambda n, step, rival=rival: _fault_at(job, step, draw(n), rival.pattern(n)),
            setup=rival.setup,
            work=partial(least_work, setting, rival, job),
            backends=partial(_backends, setting, rival, job) if rival.ours else None,
        )
        for rival in rivals
    )


def _backends(setting: Setting, attention: Attention, job: Pass, n: int) -> Backends:
    return job.backends(setting, attention.pattern(n), n)


def _needs(setting: Setting, attention: Attention, job: Pass, n: int) -> int:
    matrices = job.matrices * setting.batch(n) * setting.config.heads if attention.materialises else 0
    return matrices * n * n * setting.dtype.itemsize


def least_work(setting: Setting, attention: Attention, job: Pass, n: int) -> Work:
    """Products over the visible pairs alone, and each tensor read or written once."""
    c, batch = setting.config, setting.batch(n)
    pairs = batch * plan(attention.pattern(n), n, n, c.heads).pairs
    rows = job.query_tensors * c.heads + job.key_tensors * setting.key_heads
    return Work(
        operations=job.products * 2 * 2 * c.head_width * pairs,
        bytes=rows * batch * n * c.head_width * setting.dtype.itemsize,
    )


def _fault_at(job: Pass, step: Step, problem: Problem, pattern: Pattern) -> str | None:
    """Whether the prepared step is right at its own size, in memory that held NaN before."""
    _poison(problem)
    found: Any = step()
    results = found if isinstance(found, tuple) else (found,)
    return last_rows_fault(dict(zip(job.results, results, strict=True)), problem, pattern)


def _poison(tensors: list[Tensor]) -> None:
    """Leave NaN in the memory that the next tensors of these shapes are given."""
    held = [torch.full_like(x, torch.nan) for x in tensors]
    del held


def attention_fault(setting: Setting, attention: Attention) -> str | None:
    """Why this attention may not be timed on this machine, or None; see `gate.fault`."""
    trial = trial_of(setting)
    return fault(attention.at(trial.length), attention.pattern(trial.length), trial)


def trial_of(setting: Setting) -> Trial:
    """A problem so small that every pair can be looked at, and so large that the window has left the start behind."""
    c = setting.config
    length = min(2 * c.window + 33, LONGEST_TRIAL)
    return Trial(length, c.heads, c.head_width, setting.dtype, setting.device, c.seed, setting.key_heads)
