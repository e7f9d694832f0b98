"""A switched model computes what the dense one computes under a mask, however its tokens come."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from gossamer import Causal, Pattern, Sinks, Window, densify, resparsify, sparsify
from gossamer.integrations.huggingface import EvictingLayer, is_sparse
from gossamer.integrations.huggingface.layers import cache_name
from tests.integrations.huggingface.families import (
    LAYERS,
    LENGTH,
    MIXED,
    PATTERNS,
    SPARSE,
    differ,
    eager,
    left_padded,
    masked,
    own_window,
    tiny,
    tokens,
    with_positions,
)

pytestmark = pytest.mark.usefixtures("no_gradients")

CLOSE = 1e-5
"""Logits are of size 5 in float32."""

EVERYTHING = {"causal": Causal(), "a wide window": Window(500), "all keys": Sinks(500)}


@pytest.fixture(scope="module")
def sparse(family: str) -> PreTrainedModel:
    return sparsify(tiny(family), SPARSE)


def in_pieces(model: PreTrainedModel, ids: Tensor, pieces: list[int], cache: object = None) -> tuple[Tensor, object]:
    """(logits of all tokens, given piece by piece, and the cache behind them)."""
    name, logits = cache_name(model), []
    for piece in ids.split(pieces, dim=1):
        out = model(piece, **{name: cache}, use_cache=True)
        cache = getattr(out, name)
        logits.append(out.logits)
    return torch.cat(logits, dim=1), cache


@pytest.mark.parametrize("pattern", EVERYTHING.values(), ids=EVERYTHING)
def test_a_pattern_that_covers_everything_gives_the_original_logits(family: str, pattern: Pattern) -> None:
    ids = tokens(2, LENGTH)
    assert differ(sparsify(tiny(family), pattern)(ids).logits, eager(family)(ids).logits) < CLOSE


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_sparse_pattern_gives_the_logits_of_its_dense_mask(family: str, pattern: Pattern) -> None:
    ids = tokens(2, LENGTH)
    right = masked(family, lambda layer: pattern)(ids).logits
    assert differ(right, eager(family)(ids).logits) > 1000 * CLOSE, "the pattern makes no difference here"
    assert differ(sparsify(tiny(family), pattern)(ids).logits, right) < CLOSE


@pytest.mark.parametrize("given", [MIXED, lambda layer: MIXED.get(layer, Causal())], ids=["mapping", "function"])
def test_every_layer_follows_its_own_pattern(family: str, given: dict[int, Pattern] | Callable) -> None:
    ids = tokens(2, LENGTH)
    right = masked(family, lambda layer: MIXED.get(layer, Causal()))(ids).logits
    assert differ(sparsify(tiny(family), given)(ids).logits, right) < CLOSE


def test_padding_before_a_sequence_changes_nothing(family: str, sparse: PreTrainedModel) -> None:
    rows = [tokens(LENGTH - 13, seed=2), tokens(LENGTH, seed=3), tokens(1, seed=4)]
    for use_cache in (False, True):
        out = sparse(**with_positions(left_padded(rows)), use_cache=use_cache).logits
        for row, sequence in enumerate(rows):
            assert differ(out[row, LENGTH - len(sequence) :], sparse(sequence[None]).logits[0]) < CLOSE


def test_padding_behind_a_sequence_changes_nothing_where_nothing_goes_on(sparse: PreTrainedModel) -> None:
    """As batches are evaluated: nobody asks for a cache, and none is made that could not go on."""
    ids, mask = tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, LENGTH - 10 :] = 0
    out = sparse(ids, attention_mask=mask)
    assert getattr(out, cache_name(sparse)) is None
    assert differ(out.logits[0, : LENGTH - 10], sparse(ids[:1, : LENGTH - 10]).logits[0]) < CLOSE
    assert differ(out.logits[1], sparse(ids[1:]).logits[0]) < CLOSE


@pytest.mark.parametrize("pieces", [[30, 1, 1, 20, 1, 7], [1] * LENGTH, [LENGTH]], ids=["mixed", "ones", "whole"])
def test_a_cache_changes_nothing(sparse: PreTrainedModel, pieces: list[int]) -> None:
    ids = tokens(2, LENGTH)
    right = sparse(ids, use_cache=False).logits
    assert differ(in_pieces(sparse, ids, pieces)[0], right) < CLOSE
    assert differ(in_pieces(sparse, ids, pieces, DynamicCache())[0], right) < CLOSE
    assert differ(in_pieces(sparse, ids, pieces, DynamicCache(config=sparse.config))[0], right) < CLOSE


def test_a_cache_that_keeps_all_changes_nothing(family: str, sparse: PreTrainedModel) -> None:
    ids, keeping = tokens(2, LENGTH), sparsify(tiny(family), SPARSE, evict=False)
    right = sparse(ids, use_cache=False).logits
    logits, cache = in_pieces(keeping, ids, [30, 1, 1, 20, 1, 7], DynamicCache(config=keeping.config))
    assert differ(logits, right) < CLOSE
    assert [layer.keys.shape[2] for layer in cache.layers] == [LENGTH] * LAYERS


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_every_kind_of_pattern_is_the_same_with_a_cache(family: str, pattern: Pattern) -> None:
    ids, model = tokens(2, LENGTH), sparsify(tiny(family), pattern)
    assert differ(in_pieces(model, ids, [17, 1, 1, 1, 20, *[1] * 20])[0], model(ids, use_cache=False).logits) < CLOSE


def test_packed_sequences_are_as_if_they_came_alone(sparse: PreTrainedModel) -> None:
    """Both ways to say where they begin, rows that are packed differently, and a sequence of one token."""
    ids, packs = tokens(2, LENGTH), [[20, 1, LENGTH - 21], [33, LENGTH - 33]]
    alone = [[sparse(piece[None]).logits[0] for piece in row.split(pack)] for row, pack in zip(ids, packs, strict=True)]
    right = torch.stack([torch.cat(pieces) for pieces in alone])
    positions = torch.stack([torch.cat([torch.arange(length) for length in pack]) for pack in packs])
    for use_cache in (None, False):
        assert differ(sparse(ids, position_ids=positions, use_cache=use_cache).logits, right) < CLOSE
    bounds = torch.tensor([0, *packs[0]]).cumsum(0).int()
    out = sparse(ids[:1], position_ids=positions[:1], cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)
    assert differ(out.logits, right[:1]) < CLOSE


def test_no_token_sees_a_later_one(sparse: PreTrainedModel) -> None:
    ids = tokens(1, LENGTH)
    other = ids.clone()
    other[0, 40] = ids[0, 40] % 90 + 3
    a, b = sparse(ids, use_cache=False).logits, sparse(other, use_cache=False).logits
    assert torch.equal(a[:, :40], b[:, :40])
    assert differ(a[:, 40:], b[:, 40:]) > 1000 * CLOSE


def test_embeddings_may_come_in_place_of_tokens(sparse: PreTrainedModel) -> None:
    ids = tokens(2, LENGTH)
    assert torch.equal(sparse(inputs_embeds=sparse.get_input_embeddings()(ids)).logits, sparse(ids).logits)


def test_arguments_by_position_are_read(sparse: PreTrainedModel) -> None:
    """The base model too may be called, with its mask or its cache by position."""
    base, name = sparse.base_model, cache_name(sparse.base_model)
    padded = with_positions(left_padded([tokens(LENGTH - 9), tokens(LENGTH)]))
    right = base(**padded).last_hidden_state
    gpt2 = sparse.config.model_type == "gpt2"
    ids, mask, positions = padded.values()
    given = (ids, None, mask, None, positions) if gpt2 else (ids, mask, positions, None)
    out = base(*given)
    assert torch.equal(out.last_hidden_state, right)
    assert all(isinstance(layer, EvictingLayer) for layer in getattr(out, name).layers)


def test_densify_brings_the_original_back(family: str) -> None:
    ids, original = tokens(2, LENGTH), tiny(family)
    model = sparsify(tiny(family), SPARSE)
    assert is_sparse(model)
    sparsify(model, Window(3))
    assert densify(model) is model
    assert not is_sparse(model)
    assert not hasattr(model.config, "sparse_attention")
    assert model.config._attn_implementation == original.config._attn_implementation
    assert torch.equal(model(ids).logits, original(ids).logits)


def test_a_saved_model_is_made_sparse_again(family: str, tmp_path: Path) -> None:
    ids, model = tokens(2, LENGTH), sparsify(tiny(family), MIXED)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.sparse_attention == model.config.sparse_attention
    assert torch.equal(resparsify(loaded)(ids).logits, model(ids).logits)


def test_a_copy_is_sparse_by_itself(family: str) -> None:
    ids, model = tokens(2, LENGTH), sparsify(tiny(family), SPARSE)
    copied, right = deepcopy(model), model(ids).logits
    sparsify(model, Window(2))
    assert torch.equal(copied(ids).logits, right)
    assert differ(model(ids).logits, right) > 1000 * CLOSE


def test_models_of_different_patterns_go_on_at_once() -> None:
    """In threads, each many times, so that one's calls fall between the other's layers."""
    ids = tokens(2, LENGTH)
    models = [sparsify(tiny(family), pattern) for family in ("llama", "mistral") for pattern in PATTERNS.values()]
    right = [model(ids).logits for model in models]
    wrong: list[int] = []

    def call(number: int) -> None:
        with torch.no_grad():
            if not all(torch.equal(models[number](ids).logits, right[number]) for _ in range(5)):
                wrong.append(number)

    threads = [Thread(target=call, args=(number % len(models),)) for number in range(2 * len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_errs_no_more_than_the_masked_model(family: str, dtype: torch.dtype) -> None:
    """By the median: an expert that rounding chooses otherwise makes single tokens differ in any attention."""
    ids, dense = tokens(2, LENGTH), masked(family, lambda layer: SPARSE)
    right = dense(ids).logits
    theirs = (dense.to(dtype)(ids).logits - right).abs().median()
    model = sparsify(tiny(family).to(dtype), SPARSE)
    assert model(ids).logits.dtype == dtype
    for logits in (model(ids).logits, in_pieces(model, ids, [30, *[1] * 30])[0]):
        assert (logits - right).abs().median() < 1.5 * theirs


def test_autocast_runs(family: str) -> None:
    """Where transformers leaves queries in float32 beside values in bfloat16, too."""
    ids, dense = tokens(2, LENGTH), masked(family, lambda layer: SPARSE)
    right, model = dense(ids).logits, sparsify(tiny(family), SPARSE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = (dense(ids).logits - right).abs().median()
        ours = in_pieces(model, ids, [30, *[1] * 30])[0]
    assert (ours - right).abs().median() < 1.5 * theirs


def test_the_default_call_holds_few_keys(family: str) -> None:
    """Model, tokens and nothing else: the cache that comes back evicts, sinks too where the layer itself slides."""
    model = sparsify(tiny(family), Window(9) | Sinks(2))
    cache = getattr(model(tokens(2, LENGTH)), cache_name(model))
    held = [11 if own_window(family, layer) is None else 9 for layer in range(LAYERS)]
    assert [layer.held.held for layer in cache.layers] == held
