"""How the tokens of one forward lie: behind which others, with what padding, in which documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

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

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, scores: Scores) -> Tensor:
        """Attention of a layer's new tokens [B, H, Q, D] over the keys that a cache gave for them."""
        pattern = self.patterns[layer]
        if self.cache is not None:
            cached: Any = self.cache.layers[layer]
            return cached.attend(q, k, v, scores)
        if self.documents is not None:
            return _within_documents(self.documents, q, k, v, pattern, scores)
        if isinstance(self.length, int):
            k, v = _so_far(k, self.length), _so_far(v, self.length)
            if self.padding is None:
                return scores.attend(q, k, v, pattern)
            if isinstance(self.padding, tuple) and q.shape[2] > 1:
                return _without_padding(self.padding, q, k, v, pattern, scores)
        lengths = torch.as_tensor(self.length, device=q.device).expand(q.shape[0])
        if self.padding is not None:
            padding = torch.as_tensor(self.padding, device=q.device)
            k, v, lengths = _moved(k, padding), _moved(v, padding), lengths - padding
        return scores.attend(q, k, v, pattern, lengths.to(torch.int32))


def _so_far(x: Tensor, length: int) -> Tensor:
    """The keys so far, of a cache that may have room for more."""
    if x.shape[2] < length:
        raise ValueError(
            f"the cache holds {x.shape[2]} keys of {length} tokens: it drops keys that the pattern may read; "
            f"begin with an empty cache, or without one"
        )
    return x[:, :, :length]


def _moved(x: Tensor, padding: Tensor) -> Tensor:
    """Keys [B, G, K, D], each where it stands without the padding [B] before it."""
    place = (torch.arange(x.shape[2], device=x.device) + padding[:, None]).clamp(max=x.shape[2] - 1)
    return x.gather(2, place[:, None, :, None].expand_as(x))


def _within_documents(
    documents: Documents, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scores: Scores
) -> Tensor:
    """Attention within each of the documents that are packed in a row, counted from the document's own start."""
    if len(set(documents)) == 1:
        return scores.attend(q, k, v, Packed(pattern, documents[0]))
    rows = [
        scores.attend(q[row, None], k[row, None], v[row, None], Packed(pattern, lengths))
        for row, lengths in enumerate(documents)
    ]
    return torch.cat(rows)


def _without_padding(
    padding: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scores: Scores
) -> Tensor:
    """Sequences with as much padding together, and without it: on the fast kernels, which know no lengths."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    for some in sorted(set(padding)):
        rows = torch.tensor([row for row, own in enumerate(padding) if own == some], device=q.device)
        new = min(q.shape[2], k.shape[2] - some)  # queries that are no padding
        if new > 0:
            given = q[rows][:, :, -new:], k[rows][:, :, some:], v[rows][:, :, some:]
            out[rows, :, -new:] = scores.attend(*given, pattern)
    return out
