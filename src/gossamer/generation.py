"""Text from a model, token by token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .generation_config import SamplingConfig
from .models.gpt2 import GPT2
from .nn.cache import KVCache
from .patterns.base import require_integer


def generate(
    model: GPT2,
    tokens: Int64[Tensor, "B N"],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: tuple[int, ...] = (),
    use_cache: bool = True,
    capacity: int | None = None,
) -> Int64[Tensor, "B M"]:
    """The prompts and what the model writes after them: at most `max_new_tokens` each.

    >>> from gossamer import GPT2Config
    >>> model = GPT2(GPT2Config(vocab_size=256, context_size=64, n_layer=1, n_head=2, n_embed=32))
    >>> generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=5).shape
    torch.Size([1, 8])

    Ends early when every text has met a stop token; texts that met theirs before repeat it. The other
    arguments are those of `SamplingConfig` and `stream`, and so are the errors.
    """
    sampling = SamplingConfig(max_new_tokens, temperature, top_k, top_p, seed, stop)
    new = list(stream(model, tokens, sampling, use_cache=use_cache, capacity=capacity))
    return torch.cat([tokens, *(column[:, None] for column in new)], dim=1)


def stream(
    model: GPT2,
    tokens: Int64[Tensor, "B N"],
    sampling: SamplingConfig,
    *,
    use_cache: bool = True,
    capacity: int | None = None,
    padding: Sequence[int] | None = None,
) -> Iterator[Int64[Tensor, " B"]]:
    """Yields the next token of each text as soon as it is chosen, until all texts have stopped.

    The model is in evaluation mode while tokens are drawn; afterwards each module is as it was.

    Args:
        tokens: The prompts, all of one length, on the model's device.
        use_cache: Keep the keys of the past; without, all of them are computed again for every token.
            The tokens are the same.
        capacity: The length to plan for: the cache's size, and what an adaptive window is resolved from.
            By default the model's `context_size`, at which it was trained.
        padding: How many of each prompt's first tokens are padding, where prompts differ in length: nobody sees
            them, and positions count without them. By default none.

    Raises:
        ValueError: An argument is out of its range, or prompt and new tokens exceed the capacity.
    """
    capacity = model.config.context_size if capacity is None else capacity
    _require_room(model, tokens, sampling, capacity)
    _require_known_tokens(model, tokens, sampling)
    _require_padding(tokens, padding, use_cache)
    cache = KVCache(capacity, padding=padding) if use_cache else None
    return _decode(model, tokens, sampling, cache, capacity)


def _decode(
    model: GPT2, tokens: Tensor, sampling: SamplingConfig, cache: KVCache | None, capacity: int
) -> Iterator[Tensor]:
    unseen = tokens

    def after(last: Tensor | None) -> Tensor:
        nonlocal unseen
        if last is not None:
            unseen = torch.cat([unseen, last[:, None]], dim=1) if cache is None else last[:, None]
        features, _ = model.features(unseen, cache=cache, planned_length=capacity)
        return model.logits(features[:, -1])  # of the last token alone: a long prompt's would not fit

    return drawn(model, after, sampling, batch=len(tokens), device=tokens.device)


@torch.inference_mode()
def drawn(
    model: nn.Module,
    after: Callable[[Tensor | None], Float[Tensor, "B V"]],
    sampling: SamplingConfig,
    *,
    batch: int,
    device: torch.device,
) -> Iterator[Int64[Tensor, " B"]]:
    """Yields the next token of each text until all have stopped; those that have repeat their stop token.

    `after` gives the logits behind the prompts, and then behind the tokens that were chosen last. The model is in
    evaluation mode while tokens are drawn; afterwards each module is as it was.
    """
    training = [module for module in model.modules() if module.training]
    generator = generator_of(sampling.seed, device)
    stop = torch.tensor(sampling.stop, dtype=torch.int64, device=device)
    last, stopped = None, torch.zeros(batch, dtype=torch.bool, device=device)
    model.eval()
    try:
        for number in itertools.count():
            if number == sampling.max_new_tokens:
                return
            logits = after(last)
            if last is None:
                _require_numbers(logits)
            chosen = choose(logits, sampling, generator)
            last = chosen if last is None else torch.where(stopped, last, chosen)
            yield last
            stopped = stopped | torch.isin(last, stop)
            if sampling.stop and stopped.all():
                return
    finally:
        for module in training:
            module.training = True


def choose(
    logits: Float[Tensor, "B V"], sampling: SamplingConfig, generator: torch.Generator | None = None
) -> Int64[Tensor, " B"]:
    """One token id for each row of logits."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature  # small temperatures stay finite
    if sampling.top_k is not None:
        logits = _keep_likeliest(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = _keep_nucleus(logits, sampling.top_p)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=generator).squeeze(-1)


def _keep_likeliest(logits: Float[Tensor, "B V"], count: int) -> Float[Tensor, "B V"]:
    kept = logits.topk(min(count, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, kept.indices, kept.values)


def _keep_nucleus(logits: Float[Tensor, "B V"], mass: float) -> Float[Tensor, "B V"]:
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities  # 0 for the likeliest, which therefore stays
    ordered = ordered.masked_fill(mass_before >= mass, -math.inf)
    return torch.empty_like(logits).scatter(-1, order, ordered)


def generator_of(seed: int | None, device: torch.device) -> torch.Generator:
    """A generator for the seed, or for one drawn anew."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _require_room(model: GPT2, tokens: Tensor, sampling: SamplingConfig, capacity: int) -> None:
    context = model.config.context_size
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or 0 in tokens.shape:
        raise ValueError(
            f"generate: tokens are {tokens.dtype} {list(tokens.shape)}; give int64 [batch, length] "
            "with at least one token a text to begin with"
        )
    if tokens.device != model.wte.weight.device:
        raise ValueError(
            f"generate: tokens are on {tokens.device}, the model on {model.wte.weight.device}; "
            f"pass tokens.to({str(model.wte.weight.device)!r})"
        )
    if require_integer("generate", "capacity", capacity, least=1) > context:
        raise ValueError(
            f"generate: capacity is {capacity}, beyond the model's context_size={context}; "
            "give at most that, or load the model with a larger context_size"
        )
    length = tokens.shape[1]
    if sampling.max_new_tokens is None:
        raise ValueError(
            f"generate: max_new_tokens is None, but the model has {context} positions: its texts end; "
            f"give at most {context - length}"
        )
    if length + sampling.max_new_tokens > capacity:
        room = capacity - length
        fix = f"give max_new_tokens={room}" if room > 0 else f"keep the last {capacity - 1} tokens, or fewer"
        raise ValueError(
            f"generate: tokens has {length} tokens a text and max_new_tokens is {sampling.max_new_tokens}, "
            f"but {capacity} fit; {fix}"
        )


def _require_padding(tokens: Tensor, padding: Sequence[int] | None, use_cache: bool) -> None:
    if padding is None:
        return
    batch, length = tokens.shape
    if not use_cache:
        raise ValueError("generate: padding is given, but use_cache is False; padded prompts need the cache")
    if len(padding) != batch or not all(0 <= some < length for some in padding):
        raise ValueError(
            f"generate: padding is {list(padding)}; give a number from 0 to {length - 1} for each of {batch} prompts"
        )


def _require_known_tokens(model: GPT2, tokens: Tensor, sampling: SamplingConfig) -> None:
    known = model.config.known_tokens
    for name, ids in (("tokens", tokens), ("stop", torch.tensor(sampling.stop, dtype=torch.int64))):
        outside = ids[(ids < 0) | (ids >= known)]
        if len(outside):
            raise ValueError(
                f"generate: {name} holds {outside[0].item()}, but the model knows the ids 0 to {known - 1}; "
                "encode with the tokenizer that the model was trained with"
            )


def _require_numbers(logits: Tensor) -> None:
    # Looked at once, after the prompt: damage shows here, and waiting for the GPU at each token is slow.
    if logits.isnan().any():
        raise ValueError(
            "generate: the model's logits are NaN: its weights are damaged or its training diverged; "
            "load an earlier checkpoint"
        )
