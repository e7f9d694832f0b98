"""Text from a sparse model of transformers, token by token, without end if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ...generation import drawn
from ...generation_config import SamplingConfig
from ...patterns.base import require_integer
from .cache import evicting_cache
from .decode_step import DecodeStep
from .forward import hooks
from .layers import cache_name, text_decoder
from .switch import is_sparse

CHUNK = 4096
"""Prompt tokens that the model reads at a time, so that its memory does not follow the prompt's length."""


def stream(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    chunk: int = CHUNK,
) -> Iterator[Int64[Tensor, " B"]]:
    """Yields the next token of each text as soon as it is chosen, until all texts have stopped.

    The cache holds what the patterns read again: for bounded patterns neither memory nor the time of a token grows,
    and with `sampling.max_new_tokens` None the texts have no end but their stop tokens. Greedy tokens are those of
    `model.generate`. The model is in evaluation mode while tokens are drawn.

    Args:
        model: One that `sparsify` or `resparsify` has switched.
        prompts: Token ids of each text, which may differ in length.
        chunk: Tokens of the prompts that the model reads at a time.

    Raises:
        ValueError: The model is dense or chooses its keys itself, a prompt is empty or not of the model's tokens, or
            the texts would become longer than a learned table of positions.
    """
    if not is_sparse(model):
        raise ValueError(
            "model is dense; switch it with gossamer.sparsify(model, pattern), or with gossamer.resparsify(model) "
            "where its configuration has patterns"
        )
    if not hooks(text_decoder(model)):
        raise ValueError(
            f"{type(model).__name__} chooses its keys itself, and may choose any: nothing can be dropped; write with "
            f"model.generate"
        )
    require_integer("stream", "chunk", chunk, least=1)
    _require_tokens(model, prompts)
    _require_positions(model, max(map(len, prompts)), sampling.max_new_tokens)
    return _stream(model, prompts, sampling, chunk)


def _stream(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, chunk: int
) -> Iterator[Tensor]:
    step: DecodeStep | None = None

    def after(last: Tensor | None) -> Tensor:
        nonlocal step
        if last is not None and step is not None:
            return step(last)
        cache, padding, logits = _prefilled(model, prompts, chunk)
        step = DecodeStep(model, cache, padding)
        return logits

    return drawn(model, after, sampling, batch=len(prompts), device=model.device)


def _prefilled(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], chunk: int
) -> tuple[Cache, Int64[Tensor, " B"], Float[Tensor, "B V"]]:
    """(the cache behind the prompts, the padding before each, the logits after each)."""
    length, device = max(map(len, prompts)), model.device
    padding = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
    tokens = torch.zeros(len(prompts), length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = torch.tensor(prompt)
    tokens, place = tokens.to(device), torch.arange(length, device=device) - padding[:, None]
    (before,) = hooks(text_decoder(model)).values()
    cache, logits = evicting_cache(list(before.patterns.values())), torch.empty(0)
    for first in range(0, length, chunk):
        end = min(first + chunk, length)
        out = model(
            input_ids=tokens[:, first:end],
            attention_mask=(place[:, :end] >= 0).long() if len(prompts) > 1 else None,
            position_ids=place[:, first:end].clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
            **{cache_name(model): cache},
        )
        logits = out.logits[:, -1]
    return cache, padding, logits


def _require_tokens(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
    embeddings: Any = model.get_input_embeddings()
    known = len(embeddings.weight)
    if not len(prompts):
        raise ValueError("prompts is empty; give at least one")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {number} is empty; give at least one token, such as the beginning-of-text token")
        outside = [token for token in prompt if not 0 <= token < known]
        if outside:
            raise ValueError(
                f"prompt {number} holds {outside[0]}, but the model knows the ids 0 to {known - 1}; encode with the "
                f"tokenizer that belongs to it"
            )


def _require_positions(model: PreTrainedModel, length: int, new: int | None) -> None:
    """A rotation has no end; a table of learned positions has."""
    table = getattr(model.config, "n_positions", None)
    if table is None:
        return
    if new is None:
        raise ValueError(f"{type(model).__name__} has a table of {table} positions: its texts end; give max_new_tokens")
    if length + new > table:
        raise ValueError(
            f"prompts have up to {length} tokens and max_new_tokens is {new}, but {type(model).__name__} has a table "
            f"of {table} positions; give fewer"
        )
