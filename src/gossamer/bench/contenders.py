"""The ways to compute attention that are measured side by side, each with the pairs that it claims to see."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..attention import attend
from ..config import SparseAttentionConfig
from ..patterns import Causal, Pattern, Window
from . import peers
from .config import AttentionName
from .gate import AttentionFunction, plain_attention
from .setting import Setting


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


def attentions(setting: Setting) -> tuple[Attention, ...]:
    """The ways that the configuration names, dense ones first, those that cannot run here included."""
    return tuple(make(setting) for name, make in KNOWN.items() if name in setting.config.contenders)


def _sdpa(setting: Setting) -> Attention:
    return Attention("sdpa", _causal, lambda n: partial(scaled_dot_product_attention, is_causal=True))


def _cudnn(setting: Setting) -> Attention:
    missing = peers.only_cuda_half(setting.device, setting.dtype)
    return Attention("cudnn", _causal, lambda n: peers.cudnn_attention, missing)


def _naive(setting: Setting) -> Attention:
    def at(n: int) -> AttentionFunction:
        return partial(plain_attention, mask=torch.ones(n, n, dtype=torch.bool, device=setting.device).tril())

    return Attention("naive", _causal, at, materialises=True)


def _document(setting: Setting) -> Attention:
    sparse = SparseAttentionConfig().for_heads(setting.config.heads)
    return Attention("document", sparse.pattern, lambda n: partial(attend, pattern=sparse.pattern(n)))


def _window(setting: Setting) -> Attention:
    pattern = Causal() & Window(setting.config.window)
    return Attention("window", lambda n: pattern, lambda n: partial(attend, pattern=pattern))


def _local_attention(setting: Setting) -> Attention:
    size = setting.config.window
    pattern = Causal() & Window(size + 1)
    missing = peers.local_attention_missing()
    return Attention("local-attention", lambda n: pattern, lambda n: peers.local_attention(size), missing)


def _flex(setting: Setting) -> Attention:
    size, device = setting.config.window, setting.device
    pattern = Causal() & Window(size)
    missing = peers.only_cuda_half(device, setting.dtype)
    return Attention("flex", lambda n: pattern, lambda n: peers.flex_attention(n, size, device), missing)


def _causal(length: int) -> Pattern:
    return Causal()


KNOWN: dict[AttentionName, Callable[[Setting], Attention]] = {
    "sdpa": _sdpa,
    "cudnn": _cudnn,
    "naive": _naive,
    "document": _document,
    "window": _window,
    "local-attention": _local_attention,
    "flex": _flex,
}
