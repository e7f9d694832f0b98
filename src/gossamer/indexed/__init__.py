"""Attention over keys that were chosen for each query, and the choice of them."""

from .top_keys import top_keys

__all__ = ["top_keys"]
