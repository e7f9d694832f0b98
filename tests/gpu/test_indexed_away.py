"""Attention over chosen keys on a GPU that is not the current one: the bits that the current one gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from gossamer.indexed import (
    Selection,
    attend_indexed,
    attend_latent,
    attention_mass,
    index_scores,
    indexer_loss,
    merge_attention,
    top_keys,
)

pytestmark = pytest.mark.gpu

HERE, AWAY = "cuda:0", "cuda:1"
TOKENS, CHOSEN = 200, 40
MANY = 600
"""Tokens that are enough for the road of blocks."""

Draw = Callable[..., Tensor]


def normal(device: str, generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=generator).to(device, dtype)


def with_gradients(function: Callable[..., object], *leaves: Tensor) -> list[Tensor]:
    """Results, and the gradients of the leaves by the sum of all squares."""
    leaves = tuple(x.requires_grad_() for x in leaves)
    made = function(*leaves)
    results = [x for x in (made if isinstance(made, tuple) else (made,)) if isinstance(x, Tensor)]
    loss = torch.stack([x.float().masked_fill(x == -torch.inf, 0.0).square().sum() for x in results]).sum()
    return [*(x.detach() for x in results), *torch.autograd.grad(loss, leaves)]


def a_choice(device: str, size: int = CHOSEN, block: int = 1, tokens: int = TOKENS) -> Selection:
    """In no order, with numbers twice and numbers of nothing."""
    drawn = torch.randint(-2, tokens // block, (2, tokens, size), generator=torch.Generator().manual_seed(1))
    return Selection(drawn.to(device), block, causal=True)


def of_keys(device: str, draw: Draw, backend: str | None, block: int, tokens: int = TOKENS) -> list[Tensor]:
    tensors = draw(2, 8, tokens, 64), draw(2, 2, tokens, 64), draw(2, 2, tokens, 64), draw(8)
    selection = a_choice(device, CHOSEN if block == 1 else 2, block, tokens)

    def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> object:
        return attend_indexed(q, k, v, selection, sinks=sinks, return_lse=True, backend=backend)

    return with_gradients(attend, *tensors)


def of_latents(device: str, draw: Draw, backend: str, heads: int) -> list[Tensor]:
    shared = {"value_width": 512, "scale": 0.05, "return_lse": True, "backend": backend}
    attend = partial(attend_latent, selection=a_choice(device), **shared)
    return with_gradients(attend, draw(2, heads, TOKENS, 576), draw(2, TOKENS, 576))


def an_index(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    return draw(2, 16, TOKENS, 128), draw(2, TOKENS, 128), draw(2, TOKENS, 16, dtype=torch.float32) / 40


def of_best(device: str, draw: Draw, backend: str, precision: str) -> list[Tensor]:
    return [top_keys(*an_index(draw), CHOSEN, precision=precision, backend=backend)]


def of_scores(device: str, draw: Draw, backend: str) -> list[Tensor]:
    return with_gradients(partial(index_scores, selection=a_choice(device), backend=backend), *an_index(draw))


def of_mass(device: str, draw: Draw, backend: str, width: int = 64) -> list[Tensor]:
    given = (
        draw(2, 8, TOKENS, width),
        draw(2, 1 if width == 576 else 2, TOKENS, width),
        draw(2, 8, TOKENS, dtype=torch.float32) + 5.0,
    )
    return [attention_mass(*given, a_choice(device), backend=backend)]


def of_loss(device: str, draw: Draw, chosen: bool) -> list[Tensor]:
    q, k, lse = draw(2, 8, TOKENS, 576), draw(2, 1, TOKENS, 576), draw(2, 8, TOKENS, dtype=torch.float32) + 5.0
    selection = a_choice(device) if chosen else None
    return with_gradients(lambda *index: indexer_loss(index, q, k, lse, selection), *an_index(draw))


def of_parts(device: str, draw: Draw) -> list[Tensor]:
    tensors = [draw(2, 8, TOKENS, *width, dtype=torch.float32) for width in ((64,), (), (64,), ())]
    return with_gradients(lambda a, b, c, d, sinks: merge_attention([(a, b), (c, d)], sinks), *tensors, draw(8))


WORKS: dict[str, Callable[[str, Draw], list[Tensor]]] = {
    **{f"attend_indexed, {backend}, blocks of {block}": partial(of_keys, backend=backend, block=block)
       for backend in ("triton", "tiled") for block in (1, 32)},
    **{f"attend_indexed, blocks of {block} by their road": partial(of_keys, backend="blocks", block=block, tokens=MANY)
       for block in (64, 32)},
    **{f"attend_latent, {backend}, {heads} heads": partial(of_latents, backend=backend, heads=heads)
       for backend in ("hopper", "triton", "tiled") for heads in (128, 16)},
    **{f"top_keys, {backend}, {precision}": partial(of_best, backend=backend, precision=precision)
       for backend in ("hopper", "triton", "tiled") for precision in ("as given", "fp8")},
    **{f"index_scores, {backend}": partial(of_scores, backend=backend) for backend in ("triton", "tiled")},
    **{f"attention_mass, {backend}": partial(of_mass, backend=backend) for backend in ("triton", "tiled")},
    "attention_mass, hopper": partial(of_mass, backend="hopper", width=576),
    "indexer_loss of chosen keys": partial(of_loss, chosen=True),
    "indexer_loss of all keys": partial(of_loss, chosen=False),
    "merge_attention": of_parts,
}  # fmt: skip


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", WORKS)
def test_a_gpu_that_is_not_the_current_one(name: str) -> None:
    assert torch.cuda.current_device() == 0
    found = []
    for device in (HERE, AWAY):
        draw = partial(normal, device, torch.Generator().manual_seed(0))
        found.append(WORKS[name](device, draw))
        assert all(x.device == torch.device(device) for x in found[-1])
    assert torch.cuda.current_device() == 0
    for here, away in zip(*found, strict=True):
        assert torch.equal(here, away.to(HERE)) and not here.float().isnan().any()
