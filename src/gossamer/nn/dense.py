"""Causal self-attention over every earlier key: the dense counterpart of `SparseAttention`."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..config import GPT2Config
from .self_attention import SelfAttention


class CausalSelfAttention(SelfAttention):
    """Each token attends to itself and to every token before it, by `scaled_dot_product_attention`."""

    def __init__(self, config: GPT2Config):
        super().__init__(config.n_head, config.n_embed, dropout=config.dropout, bias=config.bias)

    def mix(
        self,
        q: Float[Tensor, "B H Q D"],
        k: Float[Tensor, "B H K D"],
        v: Float[Tensor, "B H K D"],
        length: int,
    ) -> Float[Tensor, "B H Q D"]:
        dropout = self.dropout if self.training else 0.0
        if q.shape[2] == k.shape[2]:  # a branch, because a compiler's lengths may be symbols
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return F.scaled_dot_product_attention(q, k, v, _mask_aligned_at_the_end(q, k), dropout)


def _mask_aligned_at_the_end(q: Float[Tensor, "B H Q D"], k: Float[Tensor, "B H K D"]) -> Bool[Tensor, "Q K"] | None:
    """Causality for queries that are the last of the keys; None for one query, which sees them all."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
