"""Attention between the tokens that hashing has brought together."""

from .attend import attend_hashed
from .drawing import draw_buckets

__all__ = ["attend_hashed", "draw_buckets"]
