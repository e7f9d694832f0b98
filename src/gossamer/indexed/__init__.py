"""Attention over keys that were chosen for each query, and the choice of them."""

from ..selectors.selection import Selection
from .attend import attend_indexed, attend_latent
from .loss import indexer_loss
from .merge import merge_attention
from .scores import attention_mass, index_scores
from .top_keys import top_keys

__all__ = [
    "Selection", "attend_indexed", "attend_latent", "attention_mass", "index_scores", "indexer_loss", "merge_attention",
    "top_keys",
]  # fmt: skip
