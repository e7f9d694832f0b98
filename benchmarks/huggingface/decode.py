"""Writing tokens behind a text whose keys a cache holds: by everyone who can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from gossamer import Causal, Pattern
from gossamer.bench import BenchConfig
from gossamer.bench.case import Case, Clock, Contender, Step
from gossamer.bench.clock import wall_seconds
from gossamer.bench.setting import Setting
from gossamer.integrations.huggingface.cache import evicting_cache
from gossamer.integrations.huggingface.decode_step import DecodeStep
from gossamer.nn.layer_cache import Scores

from .flex import BY_BLOCKS
from .judge import Answer, answer, fault
from .models import CacheBytes, Family, cache_bytes, pattern_of, text

TOKENS = 8
"""Tokens that are written in a row for one reading of the clock: the host may run ahead, as it does in generation."""
ROOM = 128
"""Tokens for which a static cache has room behind the text: all that are written at one length."""

NextLogits = Callable[[Tensor], Tensor]
"""Logits [B, V] after one more token [B] of each sequence."""


@dataclass
class Decoding:
    """Writes one token of each sequence behind those that the cache holds, always the same one."""

    after: NextLogits
    cache: Cache
    token: Tensor
    taken: int = 0

    def __call__(self) -> Tensor:
        self.taken += 1
        with torch.no_grad():
            return self.after(self.token)


class DecodeJudge:
    """Judges the logits of the last sequence, at each length, by float32."""

    def __init__(self, family: Family, held: CacheBytes):
        self.family, self.setting, self.held = family, family.setting, held
        self.answer = lru_cache(maxsize=2)(self._answer)

    def fault(self, name: str, pattern: Pattern, length: int, step: Any) -> str | None:
        """Why the next token's logits are wrong, or None; notes what the cache holds."""
        found = step()[-1:].clone()
        wrong = fault(found, self.answer(pattern, length, step.taken), self.setting.dtype)
        if wrong is None:
            self.held[name, length] = cache_bytes(step.cache)
        return wrong

    def _answer(self, pattern: Pattern, length: int, taken: int) -> Answer:
        past = ((k[-1:], v[-1:]) for k, v in drawn_keys(self.setting, length))
        tokens = text(self.setting, 1)[-1:].expand(1, taken)
        return answer(self.family, tokens, pattern, keep=1, past=past)


def decode_title(config: BenchConfig) -> str:
    """What the case is called, in which the batch has to stand."""
    return f"decoding of one token, batch {config.batch}"


def decode_case(family: Family, held: CacheBytes) -> Case:
    """Wall time of a token among several; what each one's cache holds is put into `held`."""
    setting, judge, twin = family.setting, DecodeJudge(family, held), family.twin
    dense, sparse = Causal(), pattern_of(setting.config)

    def contender(
        name: str, cache: Callable[[Family, int], Cache], after: Callable[[Cache], NextLogits], pattern: Pattern
    ) -> Contender:
        def prepare(length: int) -> Decoding:
            made = cache(family, length)
            return Decoding(after(made), made, text(setting, 1)[:, 0])

        return Contender(name, prepare, lambda: None, fault_at=partial(judge.fault, name, pattern))

    def compiled(implementation: str) -> Callable[[Cache], NextLogits]:
        return lambda cache: one_by_one(one_graph(twin(implementation), setting.device), cache)

    contenders = (
        contender("sdpa", growing, lambda cache: one_by_one(twin("sdpa"), cache), dense),
        contender("sdpa-compiled", static, compiled("sdpa"), dense),
        contender("flex", static, lambda cache: one_by_one(twin(BY_BLOCKS), cache), sparse),
        contender("flex-compiled", static, compiled(BY_BLOCKS), sparse),
        contender("gossamer", evicting, lambda cache: one_by_one(family.sparse, cache), sparse),
        contender("gossamer-graph", evicting, lambda cache: decode_step(family.sparse, cache), sparse),
        contender("gossamer-compiled", evicting, lambda cache: decode_step(family.compiled, cache), sparse),
    )
    return Case(decode_title(setting.config), setting.config.model.lengths, contenders, clock=token_clock)


def token_clock(device: torch.device) -> Clock:
    """A clock that gives the wall time of one among several tokens in a row."""

    def seconds(step: Step) -> float:
        return wall_seconds(lambda: [step() for _ in range(TOKENS)], device) / TOKENS

    return seconds


# Caches behind a text


def drawn_keys(setting: Setting, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random keys and values [B, G, length, D] of each layer, the same ones whoever asks."""
    c = setting.config
    for layer in range(c.model.layers):
        generator = torch.Generator(setting.device).manual_seed(c.seed + layer)
        shape = 2, c.batch, setting.key_heads, length, c.head_width
        keys, values = torch.randn(shape, generator=generator, device=setting.device, dtype=setting.dtype)
        yield keys, values


def growing(family: Family, length: int) -> Cache:
    """Transformers' usual cache, which is copied for each token."""
    return _filled(family.setting, DynamicCache(), length)


def static(family: Family, length: int) -> Cache:
    """Transformers' cache of a fixed size, which compiled models need."""
    cache = StaticCache(config=family.model.config, max_cache_len=length + ROOM)
    return _filled(family.setting, cache, length)


def _filled(setting: Setting, cache: Cache, length: int) -> Cache:
    for layer, (keys, values) in enumerate(drawn_keys(setting, length)):
        cache.update(keys, values, layer)
    return cache


def evicting(family: Family, length: int) -> Cache:
    """Ours, which drops what nobody will read; attention over the text is what adds its keys."""
    setting, c = family.setting, family.setting.config
    cache = evicting_cache([pattern_of(c)] * c.model.layers)
    layers: list[Any] = cache.layers
    for layer, (keys, values) in zip(layers, drawn_keys(setting, length), strict=True):
        queries = keys.new_zeros(c.batch, c.heads, length, c.head_width)
        layer.attend(queries, *layer.update(keys, values), Scores(c.head_width**-0.5))
    return cache


# Ways to the next logits


def one_by_one(forward: Callable[..., Any], cache: Cache) -> NextLogits:
    """The model's own forward for one token of each sequence."""

    def after(token: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # the logits before may be overwritten
        return forward(input_ids=token[:, None], past_key_values=cache, use_cache=True).logits[:, -1]

    return after


def one_graph(forward: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The model compiled whole and recorded, transformers' own fastest way; a CPU only sees that it is one graph."""
    how: dict[str, str] = {"mode": "reduce-overhead"} if device.type == "cuda" else {"backend": "eager"}
    return torch.compile(forward, fullgraph=True, dynamic=False, **how)


def decode_step(model: PreTrainedModel, cache: Cache) -> NextLogits:
    """What `stream` does for each token: a CUDA graph, as soon as one step is like the next."""
    layers: list[Any] = cache.layers
    batch = len(layers[0].held.runs[0].store.next)
    return DecodeStep(model, cache, torch.zeros(batch, dtype=torch.int64, device=model.device))
