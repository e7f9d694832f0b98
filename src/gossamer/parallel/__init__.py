"""Sequences whose tokens lie in several processes."""

from .attend import attend_shards
from .before import gathered_before
from .by_heads import attend_by_heads
from .shards import Shards, Traffic

__all__ = ["Shards", "Traffic", "attend_by_heads", "attend_shards", "gathered_before"]
