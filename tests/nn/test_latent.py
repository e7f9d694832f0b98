"""Latent attention: the written-out formula, two modes, transformers' layer, caches, choices, gradients, leaks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer.attention import attend
from gossamer.config import IndexerConfig, LatentConfig
from gossamer.indexed import Selection
from gossamer.nn import KVCache, LatentAttention
from gossamer.nn import latent as latent_module
from gossamer.nn.indexing import loss_of
from gossamer.patterns import Causal
from tests.nn.indexed_layers import INDEXER, LATENT, LATENT_SHAPES, best, dense_latent, index_scores, mask_of

MODES = ("mha", "mqa")


def layer_of(config: LatentConfig = LATENT, dtype: torch.dtype = torch.float64) -> LatentAttention:
    torch.manual_seed(1)
    layer = LatentAttention(config).to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return layer


def text(tokens: int = 50, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, tokens, 64, dtype=dtype)


@pytest.mark.parametrize("mode", [*MODES, None])
@pytest.mark.parametrize("name", LATENT_SHAPES)
def test_it_is_the_formula(name: str, mode: str | None) -> None:
    layer, x = layer_of(LATENT_SHAPES[name]), text()
    torch.testing.assert_close(layer(x, mode=mode), dense_latent(layer, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 11, 12, 13, 37])
def test_lengths_around_the_number_of_chosen_keys(tokens: int) -> None:
    layer, x = layer_of(), text(tokens)
    for mode in MODES:
        torch.testing.assert_close(layer(x, mode=mode), dense_latent(layer, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", LATENT_SHAPES)
def test_gradients_of_both_modes_are_those_of_the_formula(name: str) -> None:
    layer, x = layer_of(LATENT_SHAPES[name]), text().requires_grad_()
    given = torch.randn_like(x)
    wanted = [parameter for parameter_name, parameter in layer.named_parameters() if "indexer" not in parameter_name]
    right = torch.autograd.grad((dense_latent(layer, x) * given).sum(), [x, *wanted])
    for mode in MODES:
        found = torch.autograd.grad((layer(x, mode=mode) * given).sum(), [x, *wanted])
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-11)


def test_choosing_as_many_keys_as_there_are_is_dense_attention() -> None:
    config = replace(LATENT, indexer=replace(INDEXER, index_topk=50))
    layer, dense, x = layer_of(config, torch.float32), layer_of(replace(LATENT, indexer=None), torch.float32), None
    dense.load_state_dict({name: x for name, x in layer.state_dict().items() if "indexer" not in name})
    for tokens in (49, 50):
        x = text(tokens, dtype=torch.float32)
        for mode in MODES:
            torch.testing.assert_close(layer(x, mode=mode), dense(x, mode="mha"), rtol=0, atol=1e-5)


def test_the_choice_itself_made_with_room_for_all_is_dense_attention() -> None:
    """Against the road of chosen keys, which the layer leaves where nothing is left out."""
    layer, x = layer_of(replace(LATENT, indexer=None)), text(40)
    everything = Selection(torch.arange(40, dtype=torch.int32).expand(2, 40, -1), causal=True)
    for mode in MODES:
        torch.testing.assert_close(layer(x, mode=mode, selection=everything), layer(x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("within", [None, [[0, 40], [5, 33]]])
@pytest.mark.parametrize("queries", [0, 3, 40])
def test_all_latents_are_seen_by_a_few_queries_at_a_time_as_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, queries: int, within: list[list[int]] | None
) -> None:
    monkeypatch.setattr(latent_module, "QUERIES_AT_ONCE", 7)
    layer, places = layer_of(replace(LATENT, indexer=None)), within and torch.tensor(within, dtype=torch.int32)
    q, latents = torch.randn(2, 4, queries, 32).double(), torch.randn(2, 40, 32).double()
    found = layer._all_latents(q, latents, places)
    k, scale = latents[:, None], layer.config.softmax_scale
    wanted = attend(q, k, k[..., :24], Causal(), scale=scale, within=places, return_lse=True)
    for each, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("within", [None, [[0, 40], [5, 33]]])
def test_numbers_of_all_latents_are_not_kept_for_each_query(
    monkeypatch: pytest.MonkeyPatch, within: list[list[int]] | None
) -> None:
    monkeypatch.setattr(latent_module, "QUERIES_AT_ONCE", 7)
    layer, places = layer_of(replace(LATENT, indexer=None)), within and torch.tensor(within, dtype=torch.int32)
    q, latents = (x.double().requires_grad_() for x in (torch.randn(2, 4, 40, 32), torch.randn(2, 40, 32)))
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out, lse = layer._all_latents(q, latents, places)
    numbers = [x.untyped_storage().nbytes() // 4 for x in kept if x.dtype == torch.int32]
    assert numbers and max(numbers) <= 2 * 40
    grads = torch.randn_like(out), torch.randn_like(lse)
    due = [torch.autograd.grad((out, lse), (q, latents), grads)]
    k, scale = latents[:, None], layer.config.softmax_scale
    wanted = attend(q, k, k[..., :24], Causal(), scale=scale, within=places, return_lse=True)
    due.append(torch.autograd.grad(wanted, (q, latents), grads))
    for each, right in zip(*due, strict=True):
        torch.testing.assert_close(each, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", [*MODES, None])
@pytest.mark.parametrize("pieces", [[1] * 50, [50], [30] + [1] * 20, [7, 1, 20, 3, 19], [11, 1, 1, 37]])
@pytest.mark.parametrize("name", LATENT_SHAPES)
def test_decoding_in_pieces_is_one_forward(name: str, pieces: list[int], mode: str | None) -> None:
    layer, x, cache = layer_of(LATENT_SHAPES[name]), text(), KVCache(64)
    out = []
    with torch.no_grad():
        for piece in x.split(pieces, dim=1):
            out.append(layer(piece, mode=mode, cache=cache, layer=3))
            cache.advance(piece.shape[1])
        torch.testing.assert_close(torch.cat(out, 1), layer(x, mode="mha"), rtol=1e-11, atol=1e-12)


def test_the_cache_holds_a_latent_and_an_index_key_of_each_token_and_no_more() -> None:
    layer, cache = layer_of(dtype=torch.float32), KVCache(50)
    with torch.no_grad():
        layer(text(dtype=torch.float32), cache=cache)
    assert cache.nbytes == 2 * 50 * (24 + 8 + 16) * 4


def padded(x: Tensor, padding: list[int]) -> Tensor:
    """Each row moved behind so many tokens of noise, all rows as long as before."""
    noise = torch.randn_like(x) * 5
    return torch.stack([torch.cat([noise[row, :n], x[row, : x.shape[1] - n]]) for row, n in enumerate(padding)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pieces", [[40], [3, 30, 1, 6], [25] + [1] * 15])
@pytest.mark.parametrize("name", ["indexed", "dense"])
def test_padding_before_a_sequence_changes_nothing_in_it(name: str, pieces: list[int], mode: str) -> None:
    layer, x, padding = layer_of(LATENT_SHAPES[name]), text(40, batch=4), [0, 9, 26, 9]
    cache, out = KVCache(40, padding=padding), []
    with torch.no_grad():
        for piece in padded(x, padding).split(pieces, dim=1):
            out.append(layer(piece, mode=mode, cache=cache))
            cache.advance(piece.shape[1])
        out = torch.cat(out, 1)
        for row, n in enumerate(padding):
            alone = layer(x[row : row + 1, : 40 - n])
            torch.testing.assert_close(out[row : row + 1, n:], alone, rtol=1e-10, atol=1e-11)
            assert not out[row, :n].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["indexed", "dense"])
def test_sequences_within_rows_are_those_alone(name: str, mode: str) -> None:
    """Noise on either side, gradients too: nothing comes from outside and nothing goes there."""
    layer, x = layer_of(LATENT_SHAPES[name]), text(40, batch=3).requires_grad_()
    within = torch.tensor([[0, 40], [5, 33], [17, 29]], dtype=torch.int32)
    out = layer(x, mode=mode, within=within)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    for row, (first, end) in enumerate(within.tolist()):
        part = x[row : row + 1, first:end].detach().requires_grad_()
        alone = layer(part)
        torch.testing.assert_close(out[row : row + 1, first:end], alone, rtol=1e-10, atol=1e-11)
        (own,) = torch.autograd.grad(alone.square().sum(), part)
        torch.testing.assert_close(grad[row : row + 1, first:end], own, rtol=1e-9, atol=1e-10)
        assert not grad[row, :first].any() and not grad[row, end:].any() and not out[row, :first].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["indexed", "dense"])
def test_later_tokens_leave_earlier_outputs_bit_equal(name: str, mode: str) -> None:
    layer, x = layer_of(LATENT_SHAPES[name], torch.float32), text(dtype=torch.float32)
    for cut in (5, 12, 13, 30):
        other = x.clone()
        other[:, cut:] = torch.randn_like(other[:, cut:]) * 10
        assert torch.equal(layer(x, mode=mode)[:, :cut], layer(other, mode=mode)[:, :cut])


def test_exactly_the_chosen_keys_are_seen() -> None:
    """A token's output moves when, and only when, a token that it has chosen has another value."""
    layer, x = layer_of(), text(30, batch=1)
    _, seen = layer(x, True)
    right = best(index_scores(layer, x, layer.query_source(x)), 12)
    assert torch.equal(mask_of(seen.selection, 30), right)
    for mode in MODES:
        leaf = layer.latents(x, torch.arange(30)).detach().requires_grad_()
        layer.latents = lambda *_, leaf=leaf: leaf
        out, _ = layer(x, True, mode=mode, selection=seen.selection)
        moved = [
            torch.autograd.grad(out[0, t].sum(), leaf, retain_graph=True)[0][0].abs().sum(-1) > 0 for t in range(30)
        ]
        assert torch.equal(torch.stack(moved), right[0])
        del layer.latents


def test_one_layer_may_take_the_choice_of_another() -> None:
    chooser, follower, x = layer_of(), layer_of(replace(LATENT, indexer=None)), text()
    _, seen = chooser(x, True)
    torch.testing.assert_close(
        follower(x, selection=seen.selection),
        dense_latent(follower, x, mask_of(seen.selection, 50)),
        rtol=1e-11,
        atol=1e-12,
    )
    other = text()
    again, passed_on = chooser(other, True, selection=seen.selection)
    assert passed_on.selection is seen.selection
    assert not torch.allclose(again, chooser(other))


def test_a_choice_is_taken_over_in_decoding_too() -> None:
    chooser, follower, x = layer_of(), layer_of(replace(LATENT, indexer=None)), text()
    cache, out = KVCache(50), []
    with torch.no_grad():
        for piece in x.split([20, 1, 1, 28], dim=1):
            _, seen = chooser(piece, True, cache=cache, layer=0)
            out.append(follower(piece, cache=cache, layer=1, selection=seen.selection))
            cache.advance(piece.shape[1])
        _, seen = chooser(x, True)
        whole = follower(x, selection=seen.selection)
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=1e-11, atol=1e-12)


def test_warming_up_sees_all_keys_and_still_knows_what_the_indexer_made() -> None:
    layer, x = layer_of(), text()
    layer.stage = "warm_up"
    out, seen = layer(x, True)
    everything = torch.ones(50, 50, dtype=torch.bool).tril().expand(2, -1, -1)
    torch.testing.assert_close(out, dense_latent(layer, x, everything), rtol=1e-11, atol=1e-12)
    assert seen.selection is None and seen.index is not None


@pytest.mark.parametrize("mode", MODES)
def test_the_language_model_s_loss_leaves_the_indexer_alone(mode: str) -> None:
    layer, x = layer_of(), text().requires_grad_()
    layer(x, mode=mode).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) == ("indexer" in name), name


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="mode is 'dense'; give 'mha', 'mqa', or None"):
        layer_of()(text(), mode="dense")


def test_a_sequence_s_place_is_said_once() -> None:
    layer = layer_of()
    with pytest.raises(ValueError, match=r"within is given beside a cache; make the cache with KVCache\(padding=...\)"):
        layer(text(4), cache=KVCache(4), within=torch.tensor([[0, 4], [0, 3]], dtype=torch.int32))


@pytest.mark.parametrize("name", ["indexed", "dense"])
def test_bfloat16_by_autocast_stays_near_and_is_held_as_such(name: str) -> None:
    layer, x, cache = layer_of(LATENT_SHAPES[name], torch.float32), text(dtype=torch.float32), KVCache(50)
    _, seen = layer(x, True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        outs = [layer(x, mode=mode, selection=seen.selection) for mode in MODES]
        layer(x, cache=cache)
    right = layer(x, selection=seen.selection)
    for out in outs:
        assert (out - right).abs().max() < 0.05 * right.abs().max()
    assert {rows.dtype for held in cache.whole.values() for rows in held.rows[:1]} == {torch.bfloat16}


def test_an_indexer_turned_the_wrong_way_chooses_others() -> None:
    """The layout is a setting because a wrong one raises nothing."""
    layer, x = layer_of(), text(batch=1)
    wrong = LatentAttention(replace(LATENT, indexer=replace(INDEXER, rotary=LATENT.rotary))).double()
    wrong.load_state_dict(layer.state_dict())
    first, second = (each(x, True)[1].selection.indices for each in (layer, wrong))
    assert not torch.equal(first, second)


def test_products_below_zero_count_where_the_config_says_so() -> None:
    config = replace(LATENT, indexer=replace(INDEXER, relu=False))
    layer, x = layer_of(config), text()
    torch.testing.assert_close(layer(x), dense_latent(layer, x), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(layer(x), layer_of()(x))


def test_indexer_shapes_of_other_models() -> None:
    """An indexer that turns nothing, with one head."""
    config = replace(LATENT, indexer=IndexerConfig(1, 4, 5, 0))
    layer, x = layer_of(config), text(20)
    torch.testing.assert_close(layer(x), dense_latent(layer, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", [*MODES, None])
def test_it_compiles_as_one_graph(mode: str | None) -> None:
    torch.compiler.reset()
    layer, x = layer_of(), text().requires_grad_()
    within = torch.tensor([[0, 50], [3, 41]], dtype=torch.int32)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        out, seen = layer(x, True, mode=mode)
        return out + layer(x, mode=mode, within=within), seen.selection.indices

    found, right = torch.compile(both, backend="aot_eager", fullgraph=True)(x), both(x)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(out.square().sum(), x)[0] for out, _ in (found, right))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    torch.compiler.reset()


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


@pytest.mark.parametrize("mode", MODES)
def test_what_was_looked_at_can_be_told_from_what_is_handed_over(mode: str) -> None:
    """The log-sum-exps, queries and keys of a run give back the very weights that attention had."""
    layer, x = layer_of(), text()
    _, seen = layer(x, True, mode=mode)
    mask = mask_of(seen.selection, 50)
    weights = (seen.q @ seen.k.mT * seen.scale - seen.lse[..., None]).exp().masked_fill(~mask[:, None], 0.0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 50).double(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", [*MODES, None])
def test_no_tokens_and_no_sequences_are_no_trouble(mode: str | None) -> None:
    layer, cache, x = layer_of(), KVCache(50), text()
    assert layer(x[:, :0], mode=mode).shape == (2, 0, 64)
    assert layer(x[:0], mode=mode).shape == (0, 50, 64)
    out = []
    with torch.no_grad():
        for piece in x.split([0, 20, 0, 1, 29], dim=1):
            out.append(layer(piece, mode=mode, cache=cache))
            cache.advance(piece.shape[1])
        torch.testing.assert_close(torch.cat(out, 1), layer(x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("within", [None, [[0, 50], [9, 41]]])
@pytest.mark.parametrize("stage", ["sparse", "warm_up"])
def test_the_indexer_learns_the_same_in_both_modes(stage: str, within: list[list[int]] | None) -> None:
    """From latents or from the heads' own keys, against the sum over heads written out."""
    layer, x = layer_of(), text()
    layer.stage = stage
    places = None if within is None else torch.tensor(within, dtype=torch.int32)
    mask = torch.ones(2, 50, 50, dtype=torch.bool).tril()
    for row, (first, end) in enumerate(within or ()):
        inside = (torch.arange(50) >= first) & (torch.arange(50) < end)
        mask[row] &= inside & inside[:, None]
    _, seen = layer(x, True, mode="mha", within=places)
    if stage == "sparse":
        mask &= mask_of(seen.selection, 50)
    scores = (seen.q @ seen.k.mT * seen.scale).masked_fill(~mask[:, None], -torch.inf)
    heads = scores.softmax(-1).nan_to_num(0.0).sum(1) / 4
    index = index_scores(layer, x, layer.query_source(x)).masked_fill(~mask, -1e30).log_softmax(-1)
    each = (torch.xlogy(heads, heads) - heads * index).masked_fill(~mask, 0.0).sum(-1)
    right = each.sum() / mask.any(-1).sum()
    wanted = list(layer.indexer.parameters())
    gradients = torch.autograd.grad(right, wanted)
    for mode in MODES:
        found = loss_of(layer.indexer, layer(x, True, mode=mode, within=places)[1])
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(found, wanted), gradients, rtol=1e-8, atol=1e-11)
