"""Two layers that recall: a short convolution and then the attention that is judged, as in Zoology's hybrids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gossamer.nn.indexed import IndexedAttention
from gossamer.nn.indexing import loss_of

from .mixers import MIXERS, Sight
from .recall import IGNORED, Recalls


class ShortConvolution(nn.Module):
    """Each feature of the last few tokens summed with weights of its own, times a gate of this token, added to it."""

    def __init__(self, width: int, taps: int = 3):
        super().__init__()
        self.past = taps - 1
        self.taps, self.gate = nn.Conv1d(width, width, taps, groups=width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        return self.taps(F.pad(x.mT, (self.past, 0))).mT * self.gate(x) + x


class Recaller(nn.Module):
    """A convolution that tells a value its key, and attention that finds the key; the head is the token table.

    >>> model = Recaller("dense", Sight(16, 2, 8), vocabulary=12, longest=8)
    >>> model(torch.zeros(1, 8, dtype=torch.int64)).shape
    torch.Size([1, 8, 16])
    """

    def __init__(self, mixer: str, sight: Sight, *, vocabulary: int, longest: int):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, sight.width)
        self.near_norm, self.near = nn.LayerNorm(sight.width), ShortConvolution(sight.width)
        self.far_norm, self.far = nn.LayerNorm(sight.width), MIXERS[mixer](sight, longest)
        self.norm = nn.LayerNorm(sight.width)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Int64[Tensor, "B N"]) -> Float[Tensor, "B N E"]:
        """What the head reads."""
        return self.learning(tokens, apart=False)[0]

    def learning(self, tokens: Int64[Tensor, "B N"], *, apart: bool = True) -> tuple[Float[Tensor, "B N E"], Tensor]:
        """What the head reads, and what an indexer learns from, beside the loss; 0 where the attention has none."""
        x = self.tokens(tokens)
        x = x + self.near(self.near_norm(x))
        beside = x.new_zeros(())
        if apart and isinstance(self.far, IndexedAttention):
            seen_by, seen = self.far(self.far_norm(x), True)
            beside = loss_of(self.far.indexer, seen)
        else:
            seen_by = self.far(self.far_norm(x))
        return self.norm(x + seen_by), beside

    def logits(self, features: Float[Tensor, "M E"]) -> Float[Tensor, "M V"]:
        """Of the next token, by features of some of the places."""
        return F.linear(features, self.tokens.weight)


def losses(model: Recaller, batch: Recalls) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy of the values that are asked for, and what an indexer learns from; in bfloat16 on a GPU."""
    asked = batch.targets != IGNORED
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=batch.tokens.is_cuda):
        features, beside = model.learning(batch.tokens)
        logits = model.logits(features[asked])
    return F.cross_entropy(logits.float(), batch.targets[asked]), beside.float()


@torch.no_grad()
def accuracy(model: Recaller, batch: Recalls, *, rows: int) -> float:
    """Share of the values that are found, so many texts at a time."""
    right = count = 0
    for tokens, targets in zip(batch.tokens.split(rows), batch.targets.split(rows), strict=True):
        asked = targets != IGNORED
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
            found = model.logits(model(tokens)[asked]).argmax(-1)
        right, count = right + (found == targets[asked]).sum(), count + len(found)
    return float(right) / count
