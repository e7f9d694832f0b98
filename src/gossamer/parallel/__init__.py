"""Sequences whose tokens lie in several processes."""

from .attend import attend_shards
from .shards import Shards, Traffic

__all__ = ["Shards", "Traffic", "attend_shards"]
