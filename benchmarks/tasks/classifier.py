"""A classifier of token sequences whose attention is exchanged and whose everything else stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gossamer.config import BigBirdConfig
from gossamer.nn.bigbird import BigBirdAttention
from gossamer.nn.global_tokens import GlobalTokens
from gossamer.nn.longformer import LongformerAttention
from gossamer.nn.lsh import LSHAttention
from gossamer.selectors import LSH


@dataclass(frozen=True)
class Size:
    """Of a classifier, and of what its attention sees: about `keys` keys to a query, whatever attention it is."""

    width: int = 128
    heads: int = 2
    layers: int = 4
    inner: int = 512
    keys: int = 512


class DenseAttention(nn.Module):
    """Every token attends to every token of its sequence, by `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.inward, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N E"], *, within: Int64[Tensor, "B 2"]) -> Float[Tensor, "B N E"]:
        q, k, v = self.inward(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        visible = torch.arange(x.shape[1], device=x.device) < within[:, 1:]  # [B, N]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
        return self.output(out.transpose(1, 2).flatten(2))


def _longformer(size: Size, layer: int) -> nn.Module:
    return LongformerAttention(size.width, size.heads, window=size.keys)


def _bigbird(size: Size, layer: int) -> nn.Module:
    block = size.keys // 8  # three of the window, three by chance and both ends
    shape = {"hidden_size": size.width, "num_attention_heads": size.heads, "intermediate_size": size.inner}
    return BigBirdAttention(BigBirdConfig(**shape, block_size=block), layer)


def _reformer(size: Size, layer: int) -> nn.Module:
    rounds, chunk = 2, size.keys // 6  # in each round its own chunk, the one before and the one behind
    lsh = LSH(rounds, 1 << (chunk.bit_length() - 1), before=1, after=1, causal=False)
    return LSHAttention(size.width, size.heads, lsh)


ATTENTIONS: dict[str, Callable[[Size, int], nn.Module]] = {
    "dense": lambda size, layer: DenseAttention(size.width, size.heads),
    "longformer": _longformer,
    "bigbird": _bigbird,
    "reformer": _reformer,
}


class Block(nn.Module):
    """Attention and then two linear layers, each on a layer norm of the residual stream (pre-LN)."""

    def __init__(self, attention: nn.Module, size: Size):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(size.width), attention
        self.mlp_norm = nn.LayerNorm(size.width)
        self.mlp = nn.Sequential(
            nn.Linear(size.width, size.inner), nn.GELU(approximate="tanh"), nn.Linear(size.inner, size.width)
        )

    def forward(self, x: Float[Tensor, "B N E"], seen: dict[str, Any]) -> Float[Tensor, "B N E"]:
        x = x + self.attention(self.attention_norm(x), **seen)
        return x + self.mlp(self.mlp_norm(x))


class Classifier(nn.Module):
    """Classes of token sequences by the features of a token in front of them (CLS), which is global in Longformer.

    >>> model = Classifier("dense", Size(32, 2, 1, 64, keys=16), vocabulary=15, longest=20, classes=10)
    >>> model(torch.zeros(3, 12, dtype=torch.int64), torch.tensor([12, 7, 9])).shape
    torch.Size([3, 10])
    """

    def __init__(self, attention: str, size: Size, *, vocabulary: int, longest: int, classes: int):
        super().__init__()
        self.kind = attention
        self.tokens = nn.Embedding(vocabulary + 1, size.width)  # the last row is CLS
        self.positions = nn.Embedding(longest + 1, size.width)
        self.blocks = nn.ModuleList(Block(ATTENTIONS[attention](size, layer), size) for layer in range(size.layers))
        self.norm, self.out = nn.LayerNorm(size.width), nn.Linear(size.width, classes)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                # 0.02 is made for wider layers: keys of length 1, as hashed attention's, then see no differences.
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Int64[Tensor, "B N"], lengths: Int64[Tensor, " B"]) -> Float[Tensor, "B classes"]:
        """Logits; of each row the first `lengths[b]` tokens are the text."""
        x = self.tokens(F.pad(tokens, (1, 0), value=self.tokens.num_embeddings - 1))
        x = x + self.positions.weight[: x.shape[1]]
        seen = self._seen(lengths + 1, x)
        for block in self.blocks:
            x = block(x, seen)
        return self.out(self.norm(x[:, 0]))

    def _seen(self, lengths: Int64[Tensor, " B"], x: Float[Tensor, "B N E"]) -> dict[str, Any]:
        within = torch.stack([torch.zeros_like(lengths), lengths], 1).int()
        if self.kind != "longformer":
            return {"within": within}
        first = torch.arange(x.shape[1], device=x.device) == 0
        return {"within": within, "chosen": GlobalTokens.of(first.expand(len(x), -1))}
