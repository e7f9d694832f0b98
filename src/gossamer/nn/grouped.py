"""What modules with grouped heads share: projections to queries, keys and values, and the way back."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config.rotary import RotaryConfig
from .heads import merged, require_groups, require_sizes, split
from .positions import rotated


class GroupedHeads(nn.Module):
    """Queries of `heads` heads, keys and values of `key_heads`, each of which serves `heads / key_heads` of the former.

    Projections have the names of transformers' layers, so that weights of Llama and its kin load as they are.

    Raises:
        ValueError: A size is no positive integer, or sizes do not divide one another.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_heads: int,
        head_width: int | None = None,
        *,
        rotary: RotaryConfig | None,
        bias: bool = False,
    ):
        super().__init__()
        owner = type(self).__name__
        require_sizes(owner, {"width": width, "heads": heads, "key_heads": key_heads})
        require_groups(owner, heads, key_heads)
        if head_width is None and width % heads:
            raise ValueError(f"{owner}: width is {width}; give a multiple of the {heads} heads, or head_width")
        head_width = width // heads if head_width is None else head_width
        require_sizes(owner, {"head_width": head_width})
        self.heads, self.key_heads, self.head_width, self.rotary = heads, key_heads, head_width, rotary
        self.q_proj = nn.Linear(width, heads * head_width, bias=bias)
        self.k_proj = nn.Linear(width, key_heads * head_width, bias=bias)
        self.v_proj = nn.Linear(width, key_heads * head_width, bias=bias)
        self.o_proj = nn.Linear(heads * head_width, width, bias=bias)

    def project(self, x: Float[Tensor, "B N E"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, N, D], keys and values [B, G, N, D], not turned by positions."""
        of_keys = split(self.k_proj(x), self.key_heads), split(self.v_proj(x), self.key_heads)
        return split(self.q_proj(x), self.heads), *of_keys

    def project_at(self, x: Float[Tensor, "B N E"], past: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same, queries and keys turned by the positions of tokens that stand behind `past` others."""
        q, k, v = self.project(x)
        if self.rotary is None:
            return q, k, v
        at = torch.arange(past, past + x.shape[1], device=x.device)
        return rotated(q, at, self.rotary), rotated(k, at, self.rotary), v

    def merge(self, out: Float[Tensor, "B H N D"]) -> Float[Tensor, "B N E"]:
        """Joins the heads and projects back."""
        return self.o_proj(merged(out))
