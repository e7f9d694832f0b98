"""Reading a long text, of which the last token's logits are wanted: by everyone who can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gossamer import Causal, Pattern
from gossamer.bench.backends import Backends, forward_backends
from gossamer.bench.case import Case, Contender
from gossamer.bench.clock import wall_seconds
from gossamer.bench.peers import only_cuda_half
from gossamer.bench.setting import Setting

from .flex import BY_BLOCKS, whole_mask
from .judge import Answer, answer, disagreement, fault
from .models import CacheBytes, Family, cache_bytes, pattern_of, sinks, text

PREFILL = "prefill"
LAST = 64
"""Tokens at the end of a text whose logits are judged."""

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Prefill:
    """Reads a text into a new cache, and gives the logits of its last token."""

    forward: Forward
    tokens: Tensor

    def __call__(self, keep: int = 1) -> Any:
        with torch.no_grad():
            return self.forward(input_ids=self.tokens, use_cache=True, logits_to_keep=keep)


class PrefillJudge:
    """Judges the shortest text by float32; a longer one, which the plain formula cannot read, by the first who did."""

    def __init__(self, family: Family, held: CacheBytes):
        self.family, self.setting, self.held = family, family.setting, held
        self.shortest = min(self.setting.config.model.lengths)
        self.first: dict[tuple[int, Pattern], tuple[str, Tensor]] = {}
        self.answer = lru_cache(maxsize=2)(self._answer)

    def fault(self, name: str, pattern: Pattern, length: int, step: Any) -> str | None:
        """Why the step's logits are wrong, or None; notes what its cache holds."""
        out = step(LAST)
        wrong = self._wrong(name, pattern, length, out.logits[0])
        if wrong is None:
            self.held[name, length] = cache_bytes(out.past_key_values)
        return wrong

    def _wrong(self, name: str, pattern: Pattern, length: int, found: Tensor) -> str | None:
        right, dtype = self.answer(pattern), self.setting.dtype
        if length == self.shortest:
            return fault(found, right, dtype)
        who, other = self.first.setdefault((length, pattern), (name, found))
        apart = disagreement(found, other, right.usual, dtype)
        return apart and f"logits of {name} and {who} {apart}"

    def _answer(self, pattern: Pattern) -> Answer:
        return answer(self.family, text(self.setting, self.shortest), pattern, keep=LAST)


def prefill_case(family: Family, held: CacheBytes) -> Case:
    """Reading one text; what each one's cache holds is put into `held`."""
    setting, judge, twin = family.setting, PrefillJudge(family, held), family.twin
    dense, sparse = Causal(), pattern_of(setting.config)

    def contender(name: str, forward: Callable[[], Forward], pattern: Pattern, **more: Any) -> Contender:
        def prepare(length: int) -> Prefill:
            return Prefill(forward(), text(setting, length))

        return Contender(name, prepare, lambda: None, fault_at=partial(judge.fault, name, pattern), **more)

    cudnn = only_cuda_half(setting.device, setting.dtype)
    contenders = (
        contender("sdpa", lambda: twin("sdpa"), dense),
        contender("cudnn", lambda: by(SDPBackend.CUDNN_ATTENTION, twin("sdpa")), dense, missing=cudnn),
        contender("flex-dense", lambda: twin("flex_attention"), dense, missing=only_cuda(setting)),
        contender("flex", lambda: twin(BY_BLOCKS), sparse, setup=partial(blocks_anew, setting)),
        contender("gossamer", lambda: family.sparse, sparse, backends=partial(backends, setting)),
    )
    return Case(
        PREFILL, setting.config.model.lengths, contenders, clock=lambda device: partial(wall_seconds, device=device)
    )


def by(kernel: SDPBackend, forward: Forward) -> Forward:
    """The same, with dense attention by this kernel alone."""

    def with_kernel(**given: Any) -> Any:
        with sdpa_kernel(kernel):
            return forward(**given)

    return with_kernel


def blocks_anew(setting: Setting, length: int) -> object:
    """FlexAttention's description of the pattern at one length, which it needs once."""
    return whole_mask.__wrapped__(setting.config.window, sinks(setting.config), length, setting.device)


def backends(setting: Setting, length: int) -> Backends:
    """What runs our attention."""
    return forward_backends(setting, pattern_of(setting.config), length)


def only_cuda(setting: Setting) -> str | None:
    """Why a contender that compiles by itself is not run here, or None."""
    return None if setting.device.type == "cuda" else "is measured on CUDA only: elsewhere it compiles for minutes"
