"""One system's attention module beside the module of its name in transformers: same weights, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from gossamer.bench.case import Case, Contender
from gossamer.bench.gate import Named
from gossamer.bench.setting import Setting

JUDGED = 2048
"""Tokens of the one sequence on which our module is judged, unless the benchmark is shorter."""

ERROR = 2.0
"""Allowed difference to theirs in float32, in units of the precision's rounding, or of what theirs is off if less."""

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Made:
    """A module, and what it computes of x [B, N, E]."""

    module: nn.Module
    run: Function

    def gradients(self, x: Tensor, grad_out: Tensor) -> Callable[[], Named]:
        """Forward and backward: the output and the gradients of x and of every weight that is used."""
        x = x.detach().requires_grad_()
        names = ("x", *(name for name, weight in self.module.named_parameters() if weight.requires_grad))
        weights = [weight for weight in self.module.parameters() if weight.requires_grad]

        def step() -> Named:
            out = self.run(x)
            return {"output": out} | dict(zip(names, torch.autograd.grad(out, (x, *weights), grad_out), strict=True))

        return step


@dataclass(frozen=True)
class System:
    """How both modules are made for sequences of a length, in a dtype, with the same weights."""

    name: str
    theirs: Callable[[Setting, int, torch.dtype], Made]
    ours: dict[str, Callable[[Setting, int, torch.dtype], Made]]
    """Ours by name, the first of which computes what theirs does."""
    alike: Callable[[Setting, int, torch.dtype], tuple[Made, Made]]
    """Both, with whatever is drawn at random handed over from one to the other: what the gate compares."""


def system_case(system: System, setting: Setting) -> Case:
    """Forward with backward."""
    judge = cache(partial(fault, system, setting))
    makers = {"transformers": system.theirs} | system.ours

    def contender(name: str) -> Contender:
        return Contender(
            name,
            prepare=lambda n: makers[name](setting, n, setting.dtype).gradients(*inputs(setting, n)),
            fault=lambda: None if name == "transformers" else judge(),
            fault_at=lambda n, step: unfinished(step()),
        )

    return Case(system.name, setting.config.lengths, tuple(map(contender, makers)))


def inputs(setting: Setting, length: int, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """Random x and gradient of the output, [B, N, E] each."""
    width = setting.config.heads * setting.config.head_width
    generator = torch.Generator(setting.device).manual_seed(setting.config.seed)
    shape = batch or setting.batch(length), length, width
    x, grad = (torch.randn(shape, generator=generator, device=setting.device, dtype=setting.dtype) for _ in range(2))
    return x, grad


def fault(system: System, setting: Setting) -> str | None:
    """Where our module is further from theirs in float32 than theirs in the benchmark's precision is, or None."""
    length = min(JUDGED, *setting.config.lengths)
    x, grad = inputs(setting, length, batch=1)
    right = system.alike(setting, length, torch.float32)[0].gradients(x.float(), grad.float())()
    theirs, ours = (made.gradients(x, grad)() for made in system.alike(setting, length, setting.dtype))
    rounding = torch.finfo(setting.dtype).eps
    for name in ("output", "x"):
        off, usual = (error(found[name], right[name]) for found in (ours, theirs))
        if not off <= ERROR * min(usual, rounding) + rounding / 2:
            return f"{name} is {off:.2e} off theirs in float32, theirs in {setting.dtype} is {usual:.2e}"
    return None


def error(found: Tensor, right: Tensor) -> float:
    """Of the length of the whole."""
    return ((found.float() - right).norm() / right.norm()).item()


def unfinished(found: Named) -> str | None:
    """Which result is not finite everywhere, or None."""
    return next((f"{name} is not finite everywhere" for name, x in found.items() if not x.isfinite().all()), None)
