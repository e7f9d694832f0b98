"""Layers that choose their keys on a GPU: at DeepSeek's widths, in both modes, step by step, without waits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from gossamer.config import IndexerConfig, LatentConfig
from gossamer.nn import IndexedAttention, KVCache, LatentAttention
from gossamer.nn.indexing import loss_of
from tests.nn.indexed_layers import dense_indexed, dense_latent, mask_of

pytestmark = pytest.mark.gpu

DEVICE, WIDTH, TOKENS = "cuda", 256, 700
INDEXER = IndexerConfig(index_n_heads=16, index_head_dim=128, index_topk=128, qk_rope_head_dim=64)
LAYERS = {
    "MLA of DeepSeek's widths": lambda: LatentAttention(LatentConfig(WIDTH, 16, 192, indexer=INDEXER)),
    "MLA of all keys": lambda: LatentAttention(LatentConfig(WIDTH, 16, 192)),
    "narrow MLA": lambda: LatentAttention(LatentConfig(WIDTH, 8, None, 128, 32, 32, 32, indexer=INDEXER)),
    "GQA": lambda: IndexedAttention(8, WIDTH, INDEXER, n_kv_head=2),
}


def layer_of(name: str) -> LatentAttention | IndexedAttention:
    torch.manual_seed(1)
    return LAYERS[name]().to(DEVICE)


def text(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2)).to(DEVICE)


def modes(layer: torch.nn.Module) -> list[dict[str, str]]:
    return [{"mode": mode} for mode in ("mha", "mqa")] if isinstance(layer, LatentAttention) else [{}]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode warns of being experimental
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_formula(name: str, dtype: torch.dtype) -> None:
    """As near to float64 as the same formula in this dtype, over the keys that the layer itself has chosen."""
    layer, x = layer_of(name).to(dtype), text().to(dtype).requires_grad_()
    exact = LAYERS[name]().to(DEVICE, torch.float64)
    exact.load_state_dict({name: weight.double() for name, weight in layer.state_dict().items()})
    formula = dense_latent if isinstance(layer, LatentAttention) else dense_indexed
    for mode in modes(layer):
        out, seen = layer(x, True, **mode)
        everything = torch.ones(len(x), TOKENS, TOKENS, dtype=torch.bool, device=DEVICE).tril()
        mask = everything if seen.selection is None else mask_of(seen.selection, TOKENS)
        leaf = x.detach().double().requires_grad_()
        right, plain = formula(exact, leaf, mask), formula(layer, x, mask)
        given = torch.randn_like(right)
        grad, rough, wanted = (
            torch.autograd.grad((each.double() * given).sum(), of)[0].double()
            for each, of in ((out, x), (plain, x), (right, leaf))
        )
        for found, near, true, most in ((out, plain, right, 2), (grad, rough, wanted, 3)):
            allowed = most * (near.double() - true).abs().max() + 8 * torch.finfo(dtype).eps * true.abs().max()
            assert (found.double() - true).abs().max() <= allowed


@pytest.mark.parametrize("name", LAYERS)
def test_decoding_in_pieces_is_one_forward(name: str) -> None:
    layer, x = layer_of(name).double(), text().double()
    for mode in modes(layer):
        cache, pieces = KVCache(TOKENS, padding=[0, 37]), []
        with torch.no_grad():
            for piece in x.split([500, 1, 1, 150, *[1] * 48], dim=1):
                pieces.append(layer(piece, cache=cache, **mode))
                cache.advance(piece.shape[1])
            out = torch.cat(pieces, dim=1)
            torch.testing.assert_close(out[:1], layer(x[:1], **mode), rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(out[1:, 37:], layer(x[1:, 37:], **mode), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_a_forward_a_backward_and_a_step_wait_for_nothing(name: str, no_waiting: None) -> None:
    layer = LAYERS[name]()
    layer = layer.to(DEVICE, torch.bfloat16, non_blocking=True)
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.bfloat16, device=DEVICE)

    def work() -> None:
        for mode in modes(layer):
            layer(x, **mode).square().sum().backward()
            cache = KVCache(TOKENS)
            with torch.no_grad():
                for piece in x.split([TOKENS - 3, 1, 1, 1], dim=1):
                    layer(piece, cache=cache, **mode)
                    cache.advance(piece.shape[1])

    torch.cuda.set_sync_debug_mode("default")  # a pattern's tables of a length are made at first, and waited for
    work()
    torch.cuda.set_sync_debug_mode("error")
    work()


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_tokens_give_the_same_bits(name: str) -> None:
    layer, x = layer_of(name).bfloat16(), text().bfloat16().requires_grad_()
    for mode in modes(layer):
        first, second = (layer(x, True, **mode) for _ in range(2))
        assert torch.equal(first[0], second[0])
        if first[1].selection is not None:
            assert torch.equal(first[1].selection.indices, second[1].selection.indices)
        gradients = (torch.autograd.grad(out.float().square().sum(), x)[0] for out, _ in (first, second))
        assert torch.equal(*gradients)


@pytest.mark.parametrize("name", LAYERS)
def test_a_hundred_steps_give_the_same_bits(name: str) -> None:
    """Outputs, and the gradients of the input and of all weights, the indexer's from its own loss."""
    layer, x = layer_of(name).bfloat16(), text()[:, :300].bfloat16().requires_grad_()
    for mode in modes(layer):
        first: list[torch.Tensor] = []
        for _ in range(100):
            out, seen = layer(x, True, **mode)
            loss = out.float().square().mean()
            if layer.indexer is not None:
                loss = loss + loss_of(layer.indexer, seen)
            found = [out.detach(), *torch.autograd.grad(loss, [x, *layer.parameters()])]
            first = first or found
            assert all(map(torch.equal, first, found))


@pytest.mark.parametrize("name", ["MLA of DeepSeek's widths", "narrow MLA"])
def test_chosen_keys_are_read_as_latents_unless_a_mode_is_named(name: str) -> None:
    layer, x = layer_of(name).bfloat16(), text().bfloat16()
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x, mode="mqa"))
