"""What is asked of a process's tokens before any of them travels."""

from __future__ import annotations

from torch import Tensor

from ..inputs import autocast, check_attention, check_kinds, check_settings
from ..patterns.base import Pattern
from ..patterns.parse import checked_text
from .shards import Shards
from .softmax_part import Scores


def checked(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, shards: Shards, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in the dtype that autocast asks for; raises a ValueError for what does not fit, as `attend` does."""
    scale, softcap, dropout, backend = scores
    check_settings(pattern, scale, dropout, softcap, backend)
    checked_text(pattern)
    q, k, v = autocast(q, k, v)
    check_kinds({"q": q, "k": k, "v": v})
    check_attention(q, k, v)
    held = shards.stop - shards.first
    if q.shape[2] != held or k.shape[2] != held:
        raise ValueError(f"q has {q.shape[2]} tokens and k {k.shape[2]}; give the {held} that shards says are held")
    return q, k, v
