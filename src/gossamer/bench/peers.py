"""Other people's attention, translated once into this library's conventions; each import is optional."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..machine import installed
from .gate import AttentionFunction


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


def flex_attention(length: int, size: int, device: torch.device) -> AttentionFunction:
    """PyTorch's FlexAttention, compiled, over `Causal() & Window(size)`; its block mask is made here."""
    from torch.nn.attention.flex_attention import create_block_mask

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < size)

    block_mask = create_block_mask(in_window, None, None, length, length, device=device)
    flex = _compiled_flex()
    return lambda q, k, v: flex(q, k, v, block_mask=block_mask)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as flex

    return torch.compile(flex)


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense causal attention by cuDNN, which is often faster than what PyTorch picks by itself."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return scaled_dot_product_attention(q, k, v, is_causal=True)


def local_attention_missing() -> str | None:
    """Why `local_attention` cannot run here, or None."""
    return None if installed("local-attention") else "not installed: pip install 'gossamer[peers]'"


def only_cuda_half(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a contender made for half precision on a GPU cannot run here, or None."""
    if device.type != "cuda":
        return "runs on CUDA only"
    return None if dtype in (torch.bfloat16, torch.float16) else f"runs in half precision only, not {dtype}"
