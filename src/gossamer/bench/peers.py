"""Other people's attention, translated once into this library's conventions; each import is optional."""

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..machine import installed
from .gate import AttentionFunction

FlexMask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether, for a batch entry and a head, a query (by index) may see a key."""

FLEX_VARIANTS = 256
"""Masks and shapes that FlexAttention may be compiled for in one process."""

LARGEST_EAGER_MASK = 2**30
"""Pairs and heads above which a block mask is made by compiled code, which takes no n×n memory but must compile."""


def local_attention(size: int) -> AttentionFunction:
    """The `local-attention` package with its exact window: query `i` sees keys `i - size` to `i`.

    Its window of `size` is therefore `Causal() & Window(size + 1)`. It is left so: with a window of
    `size - 1` it would see what `Window(size)` sees, but its unaligned chunks would be about 15 % slower.

    Raises:
        ImportError: The package is not installed.
    """
    from local_attention import LocalAttention

    module = LocalAttention(size, causal=True, exact_windowsize=True, autopad=True, use_rotary_pos_emb=False)
    return module.forward


def flex_attention(block_mask: Any) -> AttentionFunction:
    """PyTorch's FlexAttention, compiled for the very shapes that it meets, over a block mask of `flex_mask`."""
    from torch.nn.attention.flex_attention import flex_attention as uncompiled

    flex = _compiled(uncompiled)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex(q, k, v, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])

    return attention


def flex_mask(allows: FlexMask, length: int, heads: int | None, device: torch.device) -> Any:
    """FlexAttention's own description of a mask at one length; `heads` where it differs from head to head."""
    from torch.nn.attention.flex_attention import create_block_mask

    large = length * length * (heads or 1) > LARGEST_EAGER_MASK
    create = _compiled(create_block_mask) if large else create_block_mask
    return create(allows, None, heads, length, length, device=device)


def flex_window(size: int) -> FlexMask:
    """`Causal() & Window(size)` as a user of FlexAttention writes it."""

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < size)

    return in_window


def flex_window_and_tokens(size: int, sinks: int, first: int, every: int) -> FlexMask:
    """A causal window, the first `sinks` tokens, and each `every`-th token from `first` on."""

    def in_window_or_token(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & ((query - key < size) | (key < sinks) | (key % every == first))

    return in_window_or_token


def flex_document(local_heads: int, size: int, every: int) -> FlexMask:
    """The design document's pattern: a causal window in the local heads, each `every`-th token in the others."""

    def local_or_global(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & torch.where(head < local_heads, query - key < size, key % every == 0)

    return local_or_global


@lru_cache(maxsize=2)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo

    # Beyond this limit PyTorch would quietly run it uncompiled, with n×n memory.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FLEX_VARIANTS)
    return torch.compile(function, dynamic=False)


def flash_attention_4(size: int) -> AttentionFunction:
    """FlashAttention-4's kernels in the CuTe DSL, over `Causal() & Window(size)`.

    Raises:
        ImportError: The package is not installed.
    """
    flash_attn_func = import_module("flash_attn.cute").flash_attn_func

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, H, D]
        found = flash_attn_func(q, k, v, causal=True, window_size=(size - 1, 0))
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    return attention


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense causal attention by whichever of its kernels PyTorch picks; one query alone is the last and sees all."""
    return scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1])


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense causal attention by cuDNN, which is often faster than what PyTorch picks by itself."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return dense_attention(q, k, v)


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense causal attention by the FlashAttention-2 kernels that come with PyTorch."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return dense_attention(q, k, v)


def local_attention_missing(heads_alike: bool = True) -> str | None:
    """Why `local_attention` cannot run here, or None."""
    if not heads_alike:
        return "needs as many key heads as query heads"
    return None if installed("local-attention") else "not installed: pip install 'gossamer[peers]'"


def flash_attention_4_missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `flash_attention_4` cannot run here, or None."""
    absent = None if installed("flash-attn-4") else "not installed: pip install --pre flash-attn-4"
    return only_cuda_half(device, dtype) or absent


def only_cuda_half(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a contender made for half precision on a GPU cannot run here, or None."""
    if device.type != "cuda":
        return "runs on CUDA only"
    return None if dtype in (torch.bfloat16, torch.float16) else f"runs in half precision only, not {dtype}"
