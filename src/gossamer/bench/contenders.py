"""The ways to compute attention that are measured side by side, each with the pairs that it claims to see."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention import attend
from ..config import SparseAttentionConfig
from ..patterns import Causal, Pattern, Sinks, Strided, Tokens, Window
from . import peers
from .cache import Cache
from .config import EVERY, SINKS, TOKENS, AttentionName
from .gate import AttentionFunction, plain_attention
from .setting import Setting

Decoding = Callable[[Tensor, Cache], Tensor]
"""Attention [B, H, 1, D] of one query of each sequence [B, H, 1, D], which stands at the last key of its cache."""


@dataclass(frozen=True)
class Attention:
    """A way to compute attention. Both callables take a length; what `at` makes there is not timed."""

    name: AttentionName
    pattern: Callable[[int], Pattern]
    at: Callable[[int], AttentionFunction]
    missing: str | None = None
    """Why it cannot run on this machine, or None."""
    materialises: bool = False
    """Whether it makes whole n×n matrices."""
    setup: Callable[[int], object] | None = None
    """What `at` must make for a length, where that is worth timing by itself."""
    decode: Callable[[int], Decoding] | None = None
    """The same attention of a new token, for a cache with room for so many; None where that is not measured."""
    ours: bool = False
    """Whether this library computes it."""


def attentions(setting: Setting) -> tuple[Attention, ...]:
    """The ways that the configuration names, dense ones first, those that cannot run here included."""
    return tuple(make(setting) for name, make in KNOWN.items() if name in setting.config.entered)


def _sdpa(setting: Setting) -> Attention:
    return _dense("sdpa", peers.dense_attention)


def _cudnn(setting: Setting) -> Attention:
    missing = peers.only_cuda_half(setting.device, setting.dtype)
    return _dense("cudnn", peers.cudnn_attention, missing)


def _flash(setting: Setting) -> Attention:
    missing = peers.only_cuda_half(setting.device, setting.dtype)
    return _dense("flash", peers.flash_attention, missing)


def _naive(setting: Setting) -> Attention:
    def at(n: int) -> AttentionFunction:
        return partial(plain_attention, mask=torch.ones(n, n, dtype=torch.bool, device=setting.device).tril())

    return Attention("naive", _causal, at, materialises=True)


def _document(setting: Setting) -> Attention:
    return _ours("document", _sparse(setting).pattern)


def _window(setting: Setting) -> Attention:
    return _ours("window", _window_pattern(setting))


def _window_and_tokens(setting: Setting) -> Attention:
    return _ours("window+tokens", _window_and_tokens_pattern(setting))


def _window_and_strided(setting: Setting) -> Attention:
    pattern = Causal() & (Window(setting.config.window) | Strided(EVERY))
    return _ours("window+strided", lambda n: pattern)


def _local_attention(setting: Setting) -> Attention:
    size = setting.config.window
    pattern = Causal() & Window(size + 1)
    missing = peers.local_attention_missing(heads_alike=setting.key_heads == setting.config.heads)
    return Attention("local-attention", lambda n: pattern, lambda n: peers.local_attention(size), missing)


def _flex(setting: Setting) -> Attention:
    mask = peers.flex_window(setting.config.window)
    return _flexible("flex", setting, _window_pattern(setting), lambda n: mask)


def _flex_document(setting: Setting) -> Attention:
    sparse = _sparse(setting)

    def mask(n: int) -> peers.FlexMask:
        return peers.flex_document(sparse.local_heads, sparse.window(n), sparse.global_every)

    return _flexible("flex-document", setting, sparse.pattern, mask, heads=sparse.n_head)


def _flex_window_and_tokens(setting: Setting) -> Attention:
    def mask(n: int) -> peers.FlexMask:
        tokens = _tokens(n)
        return peers.flex_window_and_tokens(setting.config.window, SINKS, tokens.start, tokens.step)

    return _flexible("flex-window+tokens", setting, _window_and_tokens_pattern(setting), mask)


def _fa4(setting: Setting) -> Attention:
    size = setting.config.window
    missing = peers.flash_attention_4_missing(setting.device, setting.dtype)
    return Attention("fa4", _window_pattern(setting), lambda n: peers.flash_attention_4(size), missing)


def _ours(name: AttentionName, pattern: Callable[[int], Pattern]) -> Attention:
    def decode(n: int) -> Decoding:
        return lambda q, cache: attend(q, cache.k, cache.v, pattern(n), lengths=cache.lengths)

    return Attention(name, pattern, lambda n: partial(attend, pattern=pattern(n)), decode=decode, ours=True)


def _dense(name: AttentionName, attention: AttentionFunction, missing: str | None = None) -> Attention:
    def decode(n: int) -> Decoding:
        return lambda q, cache: attention(q, *cache.filled_part)

    return Attention(name, _causal, lambda n: attention, missing, decode=decode)


def _flexible(
    name: AttentionName,
    setting: Setting,
    pattern: Callable[[int], Pattern],
    mask: Callable[[int], peers.FlexMask],
    heads: int | None = None,
) -> Attention:
    device = setting.device

    def setup(n: int) -> Any:
        return peers.flex_mask(mask(n), n, heads, device)

    missing = peers.only_cuda_half(device, setting.dtype)
    return Attention(name, pattern, lambda n: peers.flex_attention(setup(n)), missing, setup=setup)


def _causal(length: int) -> Pattern:
    return Causal()


def _window_pattern(setting: Setting) -> Callable[[int], Pattern]:
    pattern = Causal() & Window(setting.config.window)
    return lambda n: pattern


def _window_and_tokens_pattern(setting: Setting) -> Callable[[int], Pattern]:
    window = Window(setting.config.window)
    return lambda n: Causal() & (window | Sinks(SINKS) | Tokens(tuple(_tokens(n))))


def _tokens(length: int) -> range:
    """`TOKENS` positions (some more where that does not divide the length) in the middle of equal stretches."""
    every = max(1, length // TOKENS)
    return range(every // 2, length, every)


def _sparse(setting: Setting) -> SparseAttentionConfig:
    return SparseAttentionConfig().for_heads(setting.config.heads)


KNOWN: dict[AttentionName, Callable[[Setting], Attention]] = {
    "sdpa": _sdpa,
    "cudnn": _cudnn,
    "flash": _flash,
    "naive": _naive,
    "document": _document,
    "window": _window,
    "window+tokens": _window_and_tokens,
    "window+strided": _window_and_strided,
    "local-attention": _local_attention,
    "flex": _flex,
    "flex-document": _flex_document,
    "flex-window+tokens": _flex_window_and_tokens,
    "fa4": _fa4,
}
