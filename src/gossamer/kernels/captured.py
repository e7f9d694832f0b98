"""Tables that CUDA graphs read: a graph replays with their addresses, so nobody may free them any more."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

import torch

Table = TypeVar("Table", bound=Hashable)

KEPT: set[Hashable] = set()
"""Grows with the captures alone: one entry for each kind of table that a graph has been captured with."""


def kept(table: Table, device: torch.device) -> Table:
    """The table itself, and for good where a graph is being captured on the device."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        KEPT.add(table)
    return table
