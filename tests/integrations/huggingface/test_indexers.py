"""Indexers in models of transformers: nothing changes where all is chosen, and nothing but the chosen is seen."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from gossamer.config import IndexerConfig, RotaryConfig
from gossamer.integrations.huggingface import add_indexers, densify, indexing, is_sparse, load_indexers, sparsify
from gossamer.integrations.huggingface.index_cache import IndexedLayer
from gossamer.integrations.huggingface.layers import Unswitchable, attentions_of, cache_name, decoder_of
from gossamer.nn.indexing import loss_of
from gossamer.patterns import Causal
from gossamer.training import enter_stage, indexers_of, recall
from tests.integrations.huggingface import families
from tests.integrations.huggingface.families import LAYERS, LENGTH, differ, eager, left_padded, tiny, tokens

CHOSEN = 8
SAME = ("gpt2", "llama", "qwen3", "phi3")
close = {"rtol": 0.0, "atol": 2e-5}


def indexed(family: str, topk: int = CHOSEN, **settings: Any) -> PreTrainedModel:
    """The tiny model with indexers whose weights are large enough that choices differ."""
    config = IndexerConfig(index_n_heads=3, index_head_dim=16, index_topk=topk, qk_rope_head_dim=8, **settings)
    model = add_indexers(tiny(family), config)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in (parameter for indexer in indexers_of(model) for parameter in indexer.parameters()):
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("family", SAME)
@pytest.mark.usefixtures("no_gradients")
def test_where_all_is_chosen_the_model_answers_as_it_did(family: str) -> None:
    dense, model = eager(family), indexed(family, topk=LENGTH)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in dense.state_dict().items())
    text = tokens(2, LENGTH)
    torch.testing.assert_close(model(text).logits, dense(text).logits, **close)
    padded = families.with_positions(left_padded([tokens(LENGTH), tokens(20, seed=3)]))
    found, expected = model(**padded).logits, dense(**padded).logits
    torch.testing.assert_close(found[padded["attention_mask"] == 1], expected[padded["attention_mask"] == 1], **close)


@pytest.mark.parametrize("family", SAME)
@pytest.mark.usefixtures("no_gradients")
def test_a_query_sees_the_chosen_keys_and_no_others(family: str) -> None:
    """The same as transformers' own attention under a mask of the choices, layer by layer."""
    model, text = indexed(family), tokens(2, LENGTH)
    with indexing(model) as layers:
        found = model(text).logits
    assert len(layers) == LAYERS
    masked = eager(family)
    for layer, attention in attentions_of(decoder_of(masked)).items():
        seen = torch.zeros(2, LENGTH, LENGTH + 1, dtype=torch.bool)
        indices = layers[layer].selection.indices[:, 0].long()
        seen.scatter_(-1, indices.where(indices >= 0, LENGTH), True)
        assert seen[..., :LENGTH].sum(-1).eq(torch.arange(1, LENGTH + 1).clamp(max=CHOSEN)).all()
        hidden = torch.where(seen[:, None, :, :LENGTH], 0.0, torch.finfo(torch.float32).min)
        families._mask_always(attention, hidden)
    torch.testing.assert_close(found, masked(text).logits, **close)
    assert differ(found, eager(family)(text).logits) > 1e-2


@pytest.mark.parametrize("family", SAME)
@pytest.mark.usefixtures("no_gradients")
def test_no_token_sees_a_later_one(family: str) -> None:
    model, text = indexed(family), tokens(1, LENGTH)
    changed = text.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % families.VOCABULARY
    before, after = model(text, use_cache=False).logits, model(changed, use_cache=False).logits
    assert torch.equal(before[:, :40], after[:, :40]) and not torch.equal(before[:, 40], after[:, 40])


@pytest.mark.parametrize("family", SAME)
@pytest.mark.usefixtures("no_gradients")
def test_pieces_with_a_cache_are_the_whole(family: str) -> None:
    model, text = indexed(family), tokens(2, LENGTH)
    whole, cache, found = model(text, use_cache=False).logits, DynamicCache(config=model.config), []
    for start, stop in pairwise((0, 25, 26, 27, 41, LENGTH)):
        found.append(model(text[:, start:stop], **{cache_name(model): cache}).logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, **close)
    assert all(isinstance(layer, IndexedLayer) for layer in cache.layers)
    cache.crop(-10)
    again = model(text[:, -10:], **{cache_name(model): cache}).logits
    torch.testing.assert_close(again, whole[:, -10:], **close)


NEVER_WRITTEN = 2**20
"""An end of text, without which the oldest transformers cannot look up what a prompt goes on with."""


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 2, "eos_token_id": NEVER_WRITTEN}], ids=str
)
@pytest.mark.usefixtures("no_gradients")
def test_texts_are_those_of_a_model_without_a_cache(settings: dict[str, Any]) -> None:
    model, text = indexed("llama"), tokens(1, 20)
    written = model.generate(text, max_new_tokens=12, do_sample=False, **settings)
    if "num_beams" in settings:
        assert torch.equal(
            written, model.generate(text, max_new_tokens=12, do_sample=False, use_cache=False, **settings)
        )
        return
    for _ in range(12):
        text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, text)


@pytest.mark.usefixtures("no_gradients")
def test_padding_before_a_sequence_changes_nothing() -> None:
    model, rows = indexed("llama"), [tokens(LENGTH), tokens(31, seed=3)]
    padded = left_padded(rows)
    for given in (padded, families.with_positions(padded)):
        found = model(**given).logits
        for row, alone in enumerate(rows):
            expected = model(alone[None]).logits[0]
            torch.testing.assert_close(found[row, LENGTH - len(alone) :], expected, rtol=0.0, atol=1e-4)
    written = model.generate(**padded, max_new_tokens=6, do_sample=False)
    for row, alone in enumerate(rows):
        expected = model.generate(alone[None], max_new_tokens=6, do_sample=False)[0, -6:]
        assert torch.equal(written[row, -6:], expected)


def test_a_warm_up_leaves_the_model_alone_and_raises_recall() -> None:
    """On one text, learned by heart: what counts is that the losses reach the indexers and nothing else."""
    model, text = indexed("llama"), tokens(2, LENGTH)
    before = {name: value.clone() for name, value in model.named_parameters()}
    enter_stage(model, "warm_up")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for _ in range(100):
        with indexing(model) as layers:
            logits = model(text, use_cache=False).logits
        assert not logits.requires_grad and all(seen.selection is None for seen in layers)
        loss = torch.stack(list(map(loss_of, indexers_of(model), layers))).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append((loss.item(), recall(indexers_of(model), layers)))
    assert history[-1][0] < 0.5 * history[0][0] and history[-1][1] > history[0][1] + 0.2
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed and all(".indexer." in name for name in changed)


def test_in_the_sparse_stage_each_loss_reaches_its_own_weights() -> None:
    model, text = indexed("llama"), tokens(2, LENGTH)
    enter_stage(model, "sparse")
    with indexing(model) as layers:
        found = model(text, labels=text, use_cache=False)
    found.loss.backward()
    assert all((p.grad is None) == (".indexer." in name) for name, p in model.named_parameters())
    model.zero_grad()
    torch.stack(list(map(loss_of, indexers_of(model), layers))).sum().backward()
    assert all((p.grad is not None) == (".indexer." in name) for name, p in model.named_parameters())


def test_activations_that_are_made_again_change_nothing() -> None:
    """In the way that transformers takes by default; in the other, indexers would learn nothing, and it is refused."""
    found = []
    for again in (False, True):
        model, text = indexed("llama").train(), tokens(2, LENGTH)
        if again:
            _make_again(model, use_reentrant=False)
        with indexing(model) as layers:
            loss = model(text, labels=text, use_cache=False).loss
        (loss + torch.stack(list(map(loss_of, indexers_of(model), layers))).sum()).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    model = indexed("llama").train()
    _make_again(model, use_reentrant=True)
    with pytest.raises(RuntimeError, match="switch it on with use_reentrant=False"), indexing(model):
        model(text, labels=text, use_cache=False)


def _make_again(model: PreTrainedModel, use_reentrant: bool) -> None:
    name = "activation_checkpointing_enable"  # transformers renamed it
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


@pytest.mark.usefixtures("no_gradients")
def test_indexers_are_saved_with_the_model(tmp_path: Path) -> None:
    model, text = indexed("llama", rotary=RotaryConfig(interleaved=True)), tokens(2, LENGTH)
    for size in ("1GB", "40KB"):
        model.save_pretrained(tmp_path / size, max_shard_size=size)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / size)
        assert not is_sparse(loaded)
        load_indexers(loaded, tmp_path / size)
        assert is_sparse(loaded) and torch.equal(loaded(text).logits, model(text).logits)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        load_indexers(AutoModelForCausalLM.from_pretrained(tmp_path / size), tmp_path)
    with pytest.raises(ValueError, match="was not saved with indexers"):
        load_indexers(tiny("llama"), tmp_path / size)


@pytest.mark.usefixtures("no_gradients")
def test_densify_takes_them_away() -> None:
    model, dense, text = indexed("llama"), tiny("llama"), tokens(2, LENGTH)
    assert is_sparse(model) and densify(model) is model and not is_sparse(model)
    assert torch.equal(model(text).logits, dense(text).logits)
    assert model.state_dict().keys() == dense.state_dict().keys()
    assert model.config.to_dict() == dense.config.to_dict()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = IndexerConfig(index_n_heads=2, index_head_dim=16, index_topk=4, qk_rope_head_dim=8)
    with pytest.raises(Unswitchable, match="layer 0 of MistralForCausalLM has a sliding window"):
        add_indexers(tiny("mistral"), config)
    with pytest.raises(Unswitchable, match="is sparse already"):
        add_indexers(sparsify(tiny("llama"), Causal()), config)
    with pytest.raises(ValueError, match="config is 3; give an IndexerConfig"):
        add_indexers(tiny("llama"), 3)  # type: ignore[bad-argument-type]
    with pytest.raises(Unswitchable, match="has indexers; take them away"):
        sparsify(indexed("llama"), Causal())
    with pytest.raises(ValueError, match="has no indexers"), indexing(tiny("llama")):
        pass
    model, text = indexed("llama"), tokens(1, 12)
    with pytest.raises(ValueError, match="StaticCache without index keys"):
        model.generate(text, max_new_tokens=2, cache_implementation="static")
    begun = DynamicCache(config=model.config)
    tiny("llama")(text, past_key_values=begun)
    with pytest.raises(ValueError, match="DynamicCache without index keys"):
        model(text, past_key_values=begun)


def test_numbers_of_the_tokens_are_not_lost() -> None:
    """Positions given by the caller are the indexer's too: where both move by as much, choices stay."""
    model, text = indexed("llama"), tokens(1, LENGTH)
    choices: list[Tensor] = []
    for shift in (0, 5):
        with torch.no_grad(), indexing(model) as layers:
            model(text, position_ids=torch.arange(shift, LENGTH + shift)[None], use_cache=False)
        choices.append(layers[0].selection.indices)
    assert (choices[0] == choices[1]).float().mean() > 0.99
