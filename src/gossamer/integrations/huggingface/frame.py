"""How the tokens of one forward lie: behind which others, with what padding, in which documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ...attention import attend
from ...nn.layer_cache import Scores
from ...patterns import Packed, Pattern

Documents = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Frame:
    """What every layer of one forward has to know of it; made once, and handed down as a keyword argument."""

    length: int | Tensor
    """Tokens of a sequence so far, these and its padding included."""
    patterns: Mapping[int, Pattern]
    """What each layer's queries see."""
    padding: tuple[int, ...] | Tensor | None = None
    """How many of each sequence's first tokens are padding; a tensor where only the device knows, None for none."""
    documents: Documents | None = None
    """The lengths of the documents that are packed in each row."""
    cache: Cache | None = None
    """The evicting cache that the layers add to, where there is one."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, scores: Scores, dropout: float) -> Tensor:
        """Attention of a layer's new tokens [B, H, Q, D] over the keys that a cache gave for them."""
        pattern = self.patterns[layer]
        if self.cache is not None:
            return self.cache.layers[layer].attend(q, k, v, scores)
        if self.documents is not None:
            return self._within_documents(q, k, v, pattern, scores, dropout)
        if isinstance(self.length, int):
            k, v = self._so_far(k), self._so_far(v)
            if self.padding is None:
                return _attend(q, k, v, pattern, scores, dropout)
            if isinstance(self.padding, tuple) and q.shape[2] > 1:
                return self._without_padding(q, k, v, pattern, scores, dropout)
        return self._by_lengths(q, k, v, pattern, scores, dropout)

    def _so_far(self, x: Tensor) -> Tensor:
        """The keys so far, of a cache that may have room for more."""
        if x.shape[2] < self.length:
            raise ValueError(
                f"the cache holds {x.shape[2]} keys of {self.length} tokens: it drops keys that the pattern may read; "
                f"begin with an empty cache, or without one"
            )
        return x[:, :, : self.length]

    def _within_documents(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scores: Scores, dropout: float
    ) -> Tensor:
        if len(set(self.documents)) == 1:
            return _attend(q, k, v, _packed(pattern, self.documents[0]), scores, dropout)
        rows = [
            _attend(q[row, None], k[row, None], v[row, None], _packed(pattern, lengths), scores, dropout)
            for row, lengths in enumerate(self.documents)
        ]
        return torch.cat(rows)

    def _without_padding(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scores: Scores, dropout: float
    ) -> Tensor:
        """Sequences with as much padding together, and without it: on the fast kernels, which know no lengths."""
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        for padding in sorted(set(self.padding)):
            rows = torch.tensor([row for row, own in enumerate(self.padding) if own == padding], device=q.device)
            new = min(q.shape[2], k.shape[2] - padding)  # queries that are no padding
            if new > 0:
                given = q[rows][:, :, -new:], k[rows][:, :, padding:], v[rows][:, :, padding:]
                out[rows, :, -new:] = _attend(*given, pattern, scores, dropout)
        return out

    def _by_lengths(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scores: Scores, dropout: float) -> Tensor:
        """Sequences whose lengths the device reads: keys are moved to where they stand without the padding."""
        length = torch.as_tensor(self.length, device=q.device).expand(q.shape[0])
        if self.padding is not None:
            padding = torch.as_tensor(self.padding, device=q.device)
            place = (torch.arange(k.shape[2], device=q.device) + padding[:, None]).clamp(max=k.shape[2] - 1)
            k, v = (x.gather(2, place[:, None, :, None].expand_as(x)) for x in (k, v))
            length = length - padding
        return _attend(q, k, v, pattern, scores, dropout, length.to(torch.int32))


def _packed(pattern: Pattern, lengths: tuple[int, ...]) -> Pattern:
    return Packed(pattern, lengths) if len(lengths) > 1 else pattern


def _attend(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scores: Scores, dropout: float, lengths: Tensor | None = None
) -> Tensor:
    return attend(
        q, k, v, pattern,
        scale=scores.scale, softcap=scores.softcap, sinks=scores.sinks, dropout=dropout, lengths=lengths,
    )  # fmt: skip
