"""`SparseAttention`: the design document's local and global heads as a module."""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..config import GPT2Config, SparseAttentionConfig
from ..patterns.base import Pattern
from ..plan import plan
from .masks import masked_attention
from .self_attention import SelfAttention


class Intermediate(TypedDict):
    """What one layer's attention looked at in the run that returned it."""

    local_mask: Bool[Tensor, "Q K"] | None
    global_mask: Bool[Tensor, "Q K"] | None
    window_size: int
    sparsity_ratio: float


class SparseAttention(SelfAttention):
    """Self-attention whose local heads see a causal window and whose global heads see every n-th token.

    Takes the document's `SparseAttentionConfig` alone (`width` is then 64 a head unless given) or a `GPT2Config`.
    The adaptive window is resolved once per sequence: for the cache's capacity where there is a cache, else for
    `planned_length`, else for the input's length.

    >>> SparseAttention(SparseAttentionConfig(4, 2))(torch.zeros(1, 8, 384)).shape
    torch.Size([1, 8, 384])

    Raises:
        ValueError: The head counts do not sum to `n_head`, or `width` is no multiple of the heads.
    """

    def __init__(self, config: SparseAttentionConfig | GPT2Config, width: int | None = None):
        if isinstance(config, GPT2Config):
            sparse = config.sparse_config or SparseAttentionConfig().for_heads(config.n_head)
            super().__init__(
                config.n_head,
                config.n_embed,
                dropout=config.dropout,
                bias=config.bias,
                rotary=config.rotary,
            )
        else:
            sparse = config
            super().__init__(sparse.n_head, 64 * sparse.n_head if width is None else width)
        if sparse.n_head != self.n_head:
            raise ValueError(
                f"SparseAttention: {sparse.local_heads} local and {sparse.global_heads} global heads do not sum to "
                f"n_head={self.n_head}; pass sparse_config=config.for_heads({self.n_head})"
            )
        self.config = sparse

    def pattern(self, length: int) -> Pattern:
        return self.config.pattern(length)

    def intermediate(self, queries: int, keys: int, length: int, device: torch.device) -> Intermediate:
        """What a run over these lengths sees; the masks are n×n and are made here, never for the run itself."""
        config, made = self.config, plan(self.config.pattern(length), queries, keys, self.n_head)
        local, spread = (
            torch.from_numpy(pattern.dense_mask(queries, keys)).to(device) if heads else None
            for pattern, heads in (
                (config.local_pattern(length), config.local_heads),
                (config.global_pattern(), config.global_heads),
            )
        )
        return Intermediate(
            local_mask=local,
            global_mask=spread,
            window_size=config.window(length),
            sparsity_ratio=1.0 - made.share,
        )

    def generate_masks(self, seq_len: int) -> Bool[Tensor, "H N N"]:
        """Every head's mask over `seq_len` tokens, True where visible; `compute_sparsity` takes it as it is."""
        return torch.from_numpy(self.config.pattern(seq_len).dense_mask(seq_len))

    def forward_dense(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """The same attention by the document's dense formula, with `mask_value`: for teaching and tests."""
        mask = self.generate_masks(x.shape[1]).to(x.device)
        return self.merge(masked_attention(*self.project(x), mask, self.config.mask_value))
