"""The operator that finds, for each query, the keys of largest score, with its shape and the work it does.

No gradient passes through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..kernels.choice import first_of
from ..kernels.hopper.top_keys import HOPPER_SCORES
from ..kernels.tiled.top_keys import TILED_SCORES, TILED_SELECTION
from ..kernels.top_keys import Indexed, Road
from ..kernels.triton.top_keys import TRITON_QUANTIZATION, TRITON_SCORES, TRITON_SELECTION
from ..selectors.quantized import Precision, quantized
from ..selectors.topk import seen_from
from .boundary import LIBRARY, own_dtypes

ROADS = (
    Road("hopper", HOPPER_SCORES, TRITON_SELECTION),
    Road("triton", TRITON_SCORES, TRITON_SELECTION),
    Road("tiled", TILED_SCORES, TILED_SELECTION),
)
"""In the order in which they are tried."""

FEWEST_QUERIES = 128
"""Scored at a time, where the choice is of fewer keys and the scorer's memory allows it."""

torch.library.define(
    "gossamer::top_keys",
    "(Tensor q, Tensor k, Tensor weights, Tensor? visible, int count, bool relu, bool causal, str precision, "
    "str? backend) -> Tensor",
)


def road(index: Indexed, name: str | None = None) -> Road:
    """The first road that takes such tensors, or the one called `name`.

    Raises:
        ValueError: There is no road called `name`.
        Unsupported: The named road, or every one, refuses; the message gives the reasons.
    """
    return first_of(ROADS, lambda each: each.scorer.refuses(index), name).taken()


def indexed(
    q: Tensor, k: Tensor, weights: Tensor, visible: Tensor | None, *, relu: bool, causal: bool, precision: Precision
) -> Indexed:
    """The tensors with what each query may see; keys are quantized where that is asked for, queries are not yet."""
    batch, _, queries, _ = q.shape
    keys, scales = k.shape[1], None
    seen = torch.full((queries,), keys, dtype=torch.int32, device=q.device)
    if causal:
        seen = seen_from(torch.arange(keys - queries, keys, device=q.device), keys)
    seen = seen.expand(batch, queries)
    if visible is not None:
        seen = torch.minimum(seen, visible.clamp(0, keys).to(torch.int32))
    if precision != "as given":
        k, scales = _quantized(k, precision)
    return Indexed(q, k, weights.to(torch.promote_types(q.dtype, torch.float32)), seen, relu, scales)


def ready(index: Indexed, precision: Precision) -> Indexed:
    """What roads read: queries quantized too, some at a time, because it may take several times their memory."""
    if precision == "as given":
        return index
    q, scales = _quantized(index.q, precision)
    return replace(index, q=q, weights=index.weights * scales.transpose(1, 2))


def _quantized(x: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """`quantized`, by one launch where a kernel takes the vectors."""
    if TRITON_QUANTIZATION.refuses(x) is None:
        return TRITON_QUANTIZATION.quantize(x, precision)
    return quantized(x, precision)


@torch.library.impl(LIBRARY, "top_keys", "CompositeExplicitAutograd")
def _top_keys(
    q: Tensor, k: Tensor, weights: Tensor, visible: Tensor | None, count: int, relu: bool, causal: bool,
    precision: Precision, backend: str | None,
) -> Tensor:  # fmt: skip
    batch, queries, keys = q.shape[0], q.shape[2], k.shape[1]
    found = q.new_full((batch, queries, count), -1, dtype=torch.int32)
    if 0 in (batch, queries, keys):
        return found
    with own_dtypes(q.device):
        index = indexed(q, k, weights, visible, relu=relu, causal=causal, precision=precision)
        _, scorer, selector = road(ready(index.part(slice(0), slice(0), keys), precision), backend)
        held, together = scorer.most_scores // keys, scorer.together(index)
        step = max(1, min(max(count, FEWEST_QUERIES), held))
        step = step // together * together or step
        for rows, some in _parts(batch, queries, step, max(step, min(held, batch * queries * count // keys))):
            seen = min(keys, max(keys - queries + some.stop, 0)) if causal else keys
            if seen:
                part = ready(index.part(rows, some, seen), precision)
                chosen = selector.select(scorer.score(part).flatten(0, 1), part.visible.flatten(), count)
                found[rows, some] = chosen.view(*part.visible.shape, count)
    return found


def _parts(batch: int, queries: int, step: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Sequences and queries that are scored at a time: `step` queries, of as many sequences as make `most` of them."""
    rows = max(1, most // min(step, queries))
    for row in range(0, batch, rows):
        for first in range(0, queries, step):
            yield slice(row, min(row + rows, batch)), slice(first, min(first + step, queries))


@torch.library.register_fake("gossamer::top_keys")
def _top_keys_shape(q: Tensor, k: Tensor, weights: Tensor, visible: Tensor | None, count: int, *_: Any) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], count, dtype=torch.int32)


@register_flop_formula(torch.ops.gossamer.top_keys)
def _top_keys_operations(q, k, *_, out_shape=None, **__) -> int:
    return 2 * q[0] * q[1] * q[2] * k[1] * q[3]  # every pair, as if all were visible
