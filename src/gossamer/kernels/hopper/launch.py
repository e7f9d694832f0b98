"""Persistent launches: as many programs as run at once, each taking its share of the items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..devices import multiprocessors
from .configs import LAUNCH


def launch(kernel: Any, items: int, device: torch.device, arguments: Sequence[Any], constants: Sequence[Any]) -> None:
    """Runs `kernel(*arguments, *constants)` as a program for each multiprocessor, or item if these are fewer."""
    kernel[(min(items, multiprocessors(device)),)](*arguments, *constants, **LAUNCH)
