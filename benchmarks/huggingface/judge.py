"""The gate of whole models: logits against float32 by the plain formula, beside the plain formula's own error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from gossamer import Pattern

from .models import Family

TIMES = 2
"""Allowed error, in units of what the plain formula is off in the benchmark's own precision."""

Keys = Iterable[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [1, G, N, D]."""


class Answer(NamedTuple):
    """Logits of the last tokens, as float32 gives them and as the plain formula gives them in the usual precision."""

    exact: Tensor
    plain: Tensor

    @property
    def usual(self) -> float:
        """How far the plain formula is off, of the length of the whole."""
        return ((self.plain - self.exact).norm() / self.exact.norm()).item()


def answer(family: Family, tokens: Tensor, pattern: Pattern, *, keep: int, past: Keys = ()) -> Answer:
    """What the last `keep` of the tokens [1, Q], behind the keys of the past, are to give."""
    past = list(past)
    given = tokens, pattern, keep, past
    return Answer(_by_the_formula(family.exact, *given).double(), _by_the_formula(family.model, *given).double())


def _by_the_formula(
    model: PreTrainedModel, tokens: Tensor, pattern: Pattern, keep: int, past: list[tuple[Tensor, Tensor]]
) -> Tensor:
    before, new = (past[0][0].shape[2] if past else 0), tokens.shape[1]
    cache = DynamicCache()
    for layer, (k, v) in enumerate(past):
        cache.update(k.to(model.dtype), v.to(model.dtype), layer)
    queries, keys = np.arange(before, before + new)[:, None], np.arange(before + new)[None]
    seen = torch.from_numpy(np.broadcast_to(pattern.allows(queries, keys), (new, before + new)).copy())
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
    with torch.no_grad():
        out = model(
            input_ids=tokens,
            attention_mask=mask[None, None].to(tokens.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
    return out.logits[0]


def fault(found: Tensor, right: Answer, dtype: torch.dtype) -> str | None:
    """Whether logits are further off float32's than twice the plain formula's, and one rounding."""
    error = ((found.double() - right.exact).norm() / right.exact.norm()).item()
    limit = TIMES * right.usual + torch.finfo(dtype).eps / 2
    return None if error <= limit else f"logits are {error:.2e} off those in float32, allowed are {limit:.2e}"


def disagreement(found: Tensor, other: Tensor, usual: float, dtype: torch.dtype) -> str | None:
    """Whether two that may each be so far off are further apart than that allows."""
    apart = ((found.double() - other.double()).norm() / other.double().norm()).item()
    limit = 2 * (TIMES * usual + torch.finfo(dtype).eps / 2)
    return None if apart <= limit else f"differ by {apart:.2e}, allowed are {limit:.2e}"
