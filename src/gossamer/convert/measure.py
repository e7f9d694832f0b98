"""Reads a text with a dense model, and averages how much attention each candidate keeps in each head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ..patterns import Pattern
from ..patterns.base import require_integer
from .candidates import require_candidates, shares
from .checkpoint import DenseModel
from .mass import kept_mass


@dataclass(frozen=True, eq=False)
class Measurement:
    """What each candidate keeps, and costs, in each head of a model.

    Args:
        mass: The share of the head's dense attention that the candidate keeps.
        share: The share of causal attention's pairs that it computes in this layer, at `context` tokens. A layer
            that slides over a window by itself computes no pair beyond it.
        key_heads: How many key heads each layer has; its query heads share them in equal runs.
        context: Tokens of a sequence that was read.
    """

    candidates: tuple[Pattern, ...]
    mass: NDArray[np.float64]  # [L, H, C]
    share: NDArray[np.float64]  # [L, C]
    key_heads: tuple[int, ...]
    context: int


def samples(model: DenseModel, text: str, context: int | None = None, *, most: int = 8) -> tuple[Tensor, ...]:
    """At most `most` sequences of `context` tokens, spread evenly over the text, each begun as the model expects.

    Args:
        context: By default as many as the model has positions for, 2048 at most.

    Raises:
        ValueError: The text is shorter than one sequence, `context` is beyond the model's positions, or the tokenizer
            is another model's.
    """
    context = _context(model, context)
    require_integer("samples", "most", most, least=1)
    ids = model.encode(text)
    unknown = max(ids, default=0)
    if unknown >= model.vocabulary:
        raise ValueError(
            f"the tokenizer gives token {unknown}, but the model knows {model.vocabulary:,}; "
            "give the tokenizer that belongs to the model"
        )
    new = context - len(model.opening)
    if len(ids) < new:
        raise ValueError(
            f"text has {len(ids):,} tokens, and a context of {context:,} needs {new:,}; "
            "give a longer text or a smaller context"
        )
    starts = np.linspace(0, len(ids) - new, min(most, len(ids) // new)).astype(int)
    return tuple(torch.tensor([[*model.opening, *ids[start : start + new]]]) for start in starts)


def measure(
    model: DenseModel,
    sequences: Sequence[Int64[Tensor, "1 N"]],
    candidates: Sequence[Pattern],
    *,
    before: Callable[[NDArray[np.float64]], None] | None = None,
    after: Callable[[int], None] | None = None,
) -> Measurement:
    """What each candidate keeps of each head's dense attention, averaged over sequences of one length.

    Args:
        before: Called with the candidates' shares [L, C] before the first sequence is measured: it may refuse them.
        after: Called with the number of sequences measured, after each.

    Raises:
        ValueError: There is no candidate or sequence, or attention that cannot be followed; the message says what.
    """
    candidates = require_candidates(candidates)
    (context,) = _lengths(sequences)
    layers = model.survey(sequences[0])
    share = np.stack([shares(candidates, context, layer.window) for layer in layers])
    if before is not None:
        before(share)
    mass = np.zeros((len(layers), layers[0].heads, len(candidates)))
    for done, one in enumerate(_masses(model, sequences, candidates), 1):
        mass += one / len(sequences)
        if after is not None:
            after(done)
    _require_numbers(mass)
    return Measurement(candidates, mass, share, tuple(layer.key_heads for layer in layers), context)


def _masses(
    model: DenseModel, sequences: Sequence[Tensor], candidates: Sequence[Pattern]
) -> Iterator[NDArray[np.float64]]:
    """[L, H, C] of each sequence; queries and keys of one layer are held at a time."""
    for tokens in sequences:
        layers: list[NDArray] = []
        model.read(tokens, lambda seen: layers.append(kept_mass(seen, candidates).cpu().double().numpy()))  # noqa: B023
        yield np.stack(layers)


def _context(model: DenseModel, context: int | None) -> int:
    usual = 2048
    if context is None:
        context = usual if model.positions is None else min(model.positions, usual)
    require_integer("samples", "context", context, least=len(model.opening) + 1)
    if model.positions is not None and context > model.positions:
        raise ValueError(f"context is {context:,}, but the model has {model.positions:,} positions; give at most that")
    return context


def _lengths(sequences: Sequence[Tensor]) -> set[int]:
    lengths = {sequence.shape[1] for sequence in sequences}
    if len(lengths) != 1:
        raise ValueError(f"sequences have the lengths {sorted(lengths)}; give at least one, all of one length")
    return lengths


def _require_numbers(mass: NDArray[np.float64]) -> None:
    broken = np.argwhere(~np.isfinite(mass).all(axis=2))
    if len(broken):
        layer, head = broken[0]
        raise ValueError(
            f"the attention of layer {layer}, head {head} is not finite; the weights are damaged, or overflow in "
            "their dtype: convert them to float32 first"
        )
