"""Attention by itself: forward, and forward with backward."""

from collections.abc import Callable
from functools import lru_cache, partial

import torch

from .case import Case, Contender, Step
from .contenders import Attention
from .gate import Trial, fault
from .setting import Setting

Judge = Callable[[Attention], str | None]

MATRICES_FORWARD, MATRICES_TRAINING = 3, 4
"""n×n matrices that textbook attention holds at once, without and with its backward pass."""

LONGEST_TRIAL = 2081
"""The longest problem for the dense float64 oracle; a wider window is judged on it as far as it reaches."""


def forward_case(setting: Setting, rivals: tuple[Attention, ...], judge: Judge) -> Case:
    """Attention of random q, k, v, without a graph for the backward pass."""
    inputs = lru_cache(maxsize=1)(lambda n: setting.draw(n, count=3))

    def prepare(attention: Attention, n: int) -> Step:
        function, (q, k, v) = attention.at(n), inputs(n)

        def step() -> torch.Tensor:
            with torch.no_grad():
                return function(q, k, v)

        return step

    return _attention_case("attention forward", setting, rivals, judge, prepare, MATRICES_FORWARD)


def training_case(setting: Setting, rivals: tuple[Attention, ...], judge: Judge) -> Case:
    """Attention of random q, k, v and its gradients in all three for a random output gradient."""
    inputs = lru_cache(maxsize=1)(lambda n: setting.draw(n, count=4))

    def prepare(attention: Attention, n: int) -> Step:
        function, (q, k, v, dout) = attention.at(n), inputs(n)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        return lambda: torch.autograd.grad(function(*leaves), leaves, dout)

    return _attention_case("attention forward + backward", setting, rivals, judge, prepare, MATRICES_TRAINING)


def _attention_case(
    name: str,
    setting: Setting,
    rivals: tuple[Attention, ...],
    judge: Judge,
    prepare: Callable[[Attention, int], Step],
    matrices: int,
) -> Case:
    matrix_bytes = matrices * setting.config.batch * setting.config.heads * setting.dtype.itemsize
    contenders = tuple(
        Contender(
            name=rival.name,
            prepare=partial(prepare, rival),
            fault=partial(judge, rival),
            missing=rival.missing,
            needs=(lambda n: matrix_bytes * n * n) if rival.materialises else (lambda n: 0),
        )
        for rival in rivals
    )
    return Case(name, setting.config.lengths, contenders)


def attention_fault(setting: Setting, attention: Attention) -> str | None:
    """Why this attention may not be timed on this machine, or None; see `gate.fault`."""
    c = setting.config
    length = min(2 * c.window + 33, LONGEST_TRIAL)  # odd, and the window has left the start behind
    trial = Trial(length, c.heads, c.head_width, setting.dtype, setting.device, c.seed)
    return fault(attention.at(length), attention.pattern(length), trial)
