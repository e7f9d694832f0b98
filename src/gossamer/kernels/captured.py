"""Tables that CUDA graphs read: a graph replays with their addresses, so nobody may free them any more."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

import torch

Table = TypeVar("Table", bound=Hashable)

KEPT: set[Hashable] = set()
"""Grows with the captures alone: one entry for each kind of table that a graph has been captured with."""


def refuse_capture(device: torch.device) -> None:
    """Raises where a CUDA graph is being captured: it would hold the making of a table, not the table.

    Raises:
        RuntimeError: A graph is being captured on the device.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("run forward and backward once before a CUDA graph is captured: tables are made then")


def kept(table: Table, device: torch.device) -> Table:
    """The table itself, and for good where a graph is being captured on the device."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        KEPT.add(table)
    return table
