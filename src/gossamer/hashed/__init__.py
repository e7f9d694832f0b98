"""Attention between the tokens that hashing has brought together."""

from .attend import attend_hashed

__all__ = ["attend_hashed"]
