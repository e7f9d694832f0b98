"""Attention of each query over the keys that a model chose for it."""

from ..selectors.selection import Selection
from .attend import attend_indexed, attend_latent
from .merge import merge_attention

__all__ = ["Selection", "attend_indexed", "attend_latent", "merge_attention"]
