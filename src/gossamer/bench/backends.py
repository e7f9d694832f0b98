"""Which backends run a call of `attend` that is measured."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import explain
from ..kernels import Choice
from ..patterns import Pattern
from .setting import Setting


@dataclass(frozen=True)
class Backends:
    """The names of those that ran the two passes of a step; `backward` is None where it has none."""

    forward: str
    backward: str | None = None

    def __str__(self) -> str:
        return self.forward if self.backward in (None, self.forward) else f"{self.forward}, backward {self.backward}"


def training_backends(setting: Setting, pattern: Pattern, length: int) -> Backends:
    """Of attention forward and backward, over as many sequences as the setting has at this length."""
    chosen = explain(*_blank(setting, length, length, setting.batch(length)), pattern)
    return Backends(_name(chosen.forward), _name(chosen.backward))


def forward_backends(setting: Setting, pattern: Pattern, length: int) -> Backends:
    """Of attention forward alone."""
    return Backends(training_backends(setting, pattern, length).forward)


def decode_backends(setting: Setting, pattern: Pattern, capacity: int) -> Backends:
    """Of one query a sequence against a cache whose lengths the device knows."""
    batch = setting.config.batch
    lengths = torch.empty(batch, dtype=torch.int32, device=setting.device)
    return Backends(_name(explain(*_blank(setting, 1, capacity, batch), pattern, lengths=lengths).forward))


def _blank(setting: Setting, queries: int, keys: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of the right kind and shape, without memory: `explain` reads no numbers."""
    one = torch.empty(1, device=setting.device, dtype=setting.dtype)
    width = setting.config.head_width
    k = one.expand(batch, setting.key_heads, keys, width)
    return one.expand(batch, setting.config.heads, queries, width), k, k


def _name(choice: Choice) -> str:
    return choice.taken().name
