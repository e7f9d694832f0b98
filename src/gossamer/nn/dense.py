"""Causal self-attention over every earlier key: the dense counterpart of `SparseAttention`."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..config import GPT2Config
from ..patterns import Causal, Pattern
from .self_attention import SelfAttention


class CausalSelfAttention(SelfAttention):
    """Each token attends to itself and to every token before it, by `scaled_dot_product_attention`."""

    def __init__(self, config: GPT2Config):
        super().__init__(
            config.n_head,
            config.n_embed,
            dropout=config.dropout,
            bias=config.bias,
            rotary=config.rotary,
        )

    def pattern(self, length: int) -> Pattern:
        return Causal()

    def mix(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B H N D"],
        v: Float[Tensor, "B H N D"],
        length: int,
    ) -> Float[Tensor, "B H N D"]:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
