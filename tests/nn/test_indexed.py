"""Self-attention over chosen keys: the written-out formula, the dense layer, caches, choices, gradients, leaks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer import GPT2, GPT2Config, generate
from gossamer.config import RotaryConfig
from gossamer.nn import CausalSelfAttention, IndexedAttention, KVCache
from tests.nn.indexed_layers import INDEXER, best, dense_indexed, index_scores, mask_of

SHAPES = {
    "heads of their own keys": {},
    "two key heads": {"n_kv_head": 2},
    "one key head, turned": {"n_kv_head": 1, "rotary": RotaryConfig(500.0)},
    "neighbours": {"rotary": RotaryConfig(interleaved=True)},
}


def layer_of(dtype: torch.dtype = torch.float64, index_topk: int = 12, **settings: object) -> IndexedAttention:
    torch.manual_seed(1)
    return IndexedAttention(4, 64, replace(INDEXER, index_topk=index_topk), **settings).to(dtype)


def text(tokens: int = 50, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, tokens, 64, dtype=dtype)


@pytest.mark.parametrize("tokens", [1, 12, 13, 50])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_formula_and_so_are_its_gradients(name: str, tokens: int) -> None:
    layer, x = layer_of(**SHAPES[name]), text(tokens).requires_grad_()
    wanted = [x, layer.c_attn.weight, layer.c_proj.weight]
    out, right = layer(x), dense_indexed(layer, x)
    torch.testing.assert_close(out, right, rtol=1e-11, atol=1e-12)
    given = torch.randn_like(out)
    found, expected = (torch.autograd.grad((each * given).sum(), wanted) for each in (out, right))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_weights_of_a_dense_layer_load_and_room_for_all_keys_gives_its_numbers() -> None:
    dense = CausalSelfAttention(GPT2Config(n_head=4, n_embed=64, positions="rotary"))
    layer = layer_of(torch.float32, 50, rotary=RotaryConfig())
    missing, unexpected = layer.load_state_dict(dense.state_dict(), strict=False)
    assert all(name.startswith("indexer.") for name in missing) and not unexpected
    x = text(dtype=torch.float32)
    torch.testing.assert_close(layer(x), dense(x), rtol=0, atol=1e-5)
    layer.indexer.config = replace(INDEXER, index_topk=12)
    assert not torch.allclose(layer(x), dense(x), atol=1e-3)


@pytest.mark.parametrize("pieces", [[1] * 50, [50], [30] + [1] * 20, [7, 1, 20, 3, 19]])
@pytest.mark.parametrize("name", SHAPES)
def test_decoding_in_pieces_is_one_forward(name: str, pieces: list[int]) -> None:
    layer, x, cache, out = layer_of(**SHAPES[name]), text(), KVCache(64), []
    with torch.no_grad():
        for piece in x.split(pieces, dim=1):
            out.append(layer(piece, cache=cache, layer=1))
            cache.advance(piece.shape[1])
        torch.testing.assert_close(torch.cat(out, 1), layer(x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("pieces", [[40], [3, 30, 1, 6], [25] + [1] * 15])
def test_padding_before_a_sequence_changes_nothing_in_it(pieces: list[int]) -> None:
    layer, x, padding = layer_of(**SHAPES["one key head, turned"]), text(40, 4), [0, 9, 26, 9]
    noise = torch.randn_like(x) * 5
    rows = [torch.cat([noise[row, :n], x[row, : 40 - n]]) for row, n in enumerate(padding)]
    cache, out = KVCache(40, padding=padding), []
    with torch.no_grad():
        for piece in torch.stack(rows).split(pieces, dim=1):
            out.append(layer(piece, cache=cache))
            cache.advance(piece.shape[1])
        for row, n in enumerate(padding):
            found, alone = torch.cat(out, 1)[row, n:], layer(x[row : row + 1, : 40 - n])[0]
            torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-11)


def test_sequences_within_rows_are_those_alone() -> None:
    layer, x = layer_of(), text(40, 3)
    within = torch.tensor([[0, 40], [5, 33], [17, 29]], dtype=torch.int32)
    out = layer(x, within=within)
    for row, (first, end) in enumerate(within.tolist()):
        alone = layer(x[row : row + 1, first:end])
        torch.testing.assert_close(out[row : row + 1, first:end], alone, rtol=1e-10, atol=1e-11)
    _, seen = layer(x, True, within=within)
    chosen = mask_of(seen.selection, 40)
    assert not chosen[1, :5].any() and not chosen[1, :, :5].any() and not chosen[1, :, 33:].any()


@pytest.mark.parametrize("name", SHAPES)
def test_later_tokens_leave_earlier_outputs_bit_equal(name: str) -> None:
    layer, x = layer_of(torch.float32, **SHAPES[name]), text(dtype=torch.float32)
    for cut in (5, 12, 13, 30):
        other = x.clone()
        other[:, cut:] = torch.randn_like(other[:, cut:]) * 10
        assert torch.equal(layer(x)[:, :cut], layer(other)[:, :cut])


def test_the_chosen_keys_are_the_best_and_those_of_another_layer_are_taken() -> None:
    layer, x = layer_of(), text()
    _, seen = layer(x, True)
    assert torch.equal(mask_of(seen.selection, 50), best(index_scores(layer, x, x), 12))
    other, follower = text(), layer_of(n_kv_head=2)
    out = follower(other, selection=seen.selection)
    torch.testing.assert_close(out, dense_indexed(follower, other, mask_of(seen.selection, 50)), rtol=1e-11, atol=1e-12)


def test_warming_up_sees_all_keys() -> None:
    layer, x = layer_of(), text()
    layer.stage = "warm_up"
    out, seen = layer(x, True)
    everything = torch.ones(50, 50, dtype=torch.bool).tril().expand(2, -1, -1)
    torch.testing.assert_close(out, dense_indexed(layer, x, everything), rtol=1e-11, atol=1e-12)
    assert seen.selection is None


def test_the_language_model_s_loss_leaves_the_indexer_alone() -> None:
    layer, x = layer_of(), text()
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) == ("indexer" in name), name


@pytest.mark.parametrize("tokens", [12, 50])
def test_pairs_are_dropped_in_training_alone(tokens: int) -> None:
    layer, x = layer_of(dropout=0.5), text(tokens)
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), dense_indexed(layer, x), rtol=1e-11, atol=1e-12)


def test_key_heads_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="IndexedAttention: n_kv_head is 3; give a divisor of the 4 heads"):
        layer_of(n_kv_head=3)


def test_it_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    layer, x = layer_of(n_kv_head=2), text().requires_grad_()
    found, right = torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, right))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    torch.compiler.reset()


def test_bfloat16_by_autocast_stays_near() -> None:
    layer, x, cache = layer_of(torch.float32, n_kv_head=2), text(dtype=torch.float32), KVCache(50)
    _, seen = layer(x, True)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        out = layer(x, selection=seen.selection)
        pieces = []
        for piece in x.split([20, *[1] * 30], dim=1):
            pieces.append(layer(piece, cache=cache))
            cache.advance(piece.shape[1])
        assert torch.cat(pieces, 1).shape == x.shape
    right = layer(x, selection=seen.selection)
    assert (out - right).abs().max() < 0.05 * right.abs().max()


def test_it_stands_in_a_gpt2_and_writes_text() -> None:
    """The block hands over what it hands to any attention, and the model's cache serves layers of either kind."""
    config = GPT2Config(vocab_size=32, context_size=64, n_layer=2, n_head=4, n_embed=64)
    model = GPT2(config).eval()
    model.h[1].attn = IndexedAttention(4, 64, replace(INDEXER, index_topk=6))
    tokens = torch.randint(32, (2, 20))
    cached = generate(model, tokens, max_new_tokens=12, temperature=0.0)
    again = generate(model, tokens, max_new_tokens=12, temperature=0.0, use_cache=False)
    assert torch.equal(cached, again)
    _, (_, seen) = model.features(tokens, return_intermediate=True)
    assert seen.selection.indices.shape == (2, 1, 20, 6)


def test_a_stage_that_is_none_is_refused() -> None:
    layer = layer_of()
    layer.stage = "dense"
    with pytest.raises(ValueError, match="stage is 'dense'; give 'sparse', or 'warm_up'"):
        layer(text())


@pytest.mark.parametrize("stage", ["sparse", "warm_up"])
def test_what_the_indexer_learns_from_leads_to_nobody_else(stage: str) -> None:
    layer, x = layer_of(), text().requires_grad_()
    layer.stage = stage
    _, seen = layer(x, True)
    sum(part.square().sum() for part in seen.index).backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) == ("indexer" not in name), name
    assert x.grad is None and not any(each.requires_grad for each in (seen.q, seen.k, seen.lse))
