"""Text is the same whatever the cache holds, and however transformers is asked for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast, StaticCache, pipeline, set_seed

from gossamer import Causal, Dilated, Pattern, PerHead, Sinks, Strided, Window, sparsify
from gossamer.integrations.huggingface import EvictingLayer
from gossamer.integrations.huggingface.layers import cache_name
from tests.integrations.huggingface.families import (
    LENGTH,
    MIXED,
    PATTERNS,
    SPARSE,
    VOCABULARY,
    left_padded,
    tiny,
    tokens,
)

pytestmark = pytest.mark.usefixtures("no_gradients")

NEW = 16
BY_LAYER: dict[str, Any] = {"mapping": MIXED, "function": lambda layer: Window(5 + layer) | Sinks(1 + layer)}
ROWS = [tokens(LENGTH - 13, seed=2), tokens(LENGTH, seed=3), tokens(LENGTH - 1, seed=4)]


def greedy(model: PreTrainedModel, given: Tensor | dict[str, Tensor], new: int = NEW, **settings: Any) -> Tensor:
    """Tokens [B, new] that follow."""
    given = {"input_ids": given, "attention_mask": torch.ones_like(given)} if isinstance(given, Tensor) else given
    settings = {"max_new_tokens": new, "do_sample": False} | settings
    return model.generate(**given, **settings)[:, given["input_ids"].shape[1] :]


@pytest.fixture(scope="module")
def evicting(family: str) -> PreTrainedModel:
    return sparsify(tiny(family), SPARSE)


@pytest.fixture(scope="module")
def keeping(family: str) -> PreTrainedModel:
    return sparsify(tiny(family), SPARSE, evict=False)


@pytest.fixture(scope="module")
def text(keeping: PreTrainedModel) -> Tensor:
    """What follows, by the definition: every step computes everything anew."""
    return greedy(keeping, tokens(2, LENGTH), use_cache=False)


@pytest.mark.parametrize("pattern", (PATTERNS | BY_LAYER).values(), ids=PATTERNS | BY_LAYER)
def test_greedy_text_is_that_of_the_whole_cache_and_of_no_cache(
    family: str, pattern: Pattern | dict[int, Pattern] | Callable[[int], Pattern]
) -> None:
    ids = tokens(2, LENGTH)
    found = greedy(sparsify(tiny(family), pattern), ids)
    assert found.unique().numel() > 4, "hardly a text"
    whole = sparsify(tiny(family), pattern, evict=False)
    assert torch.equal(found, greedy(whole, ids))
    assert torch.equal(found[:, :9], greedy(whole, ids, 9, use_cache=False))


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_batch_of_different_lengths_writes_what_each_writes_alone(family: str, pattern: Pattern) -> None:
    model = sparsify(tiny(family), pattern)
    together = greedy(model, left_padded(ROWS))
    for row, sequence in enumerate(ROWS):
        assert torch.equal(together[row], greedy(model, sequence[None])[0])


def test_a_batch_writes_the_same_with_every_cache(evicting: PreTrainedModel, keeping: PreTrainedModel) -> None:
    given = left_padded(ROWS)
    right = greedy(evicting, given)
    assert torch.equal(greedy(keeping, given), right)
    assert torch.equal(greedy(keeping, given, use_cache=False), right)
    assert torch.equal(greedy(evicting, given, prefill_chunk_size=16), right)


def test_sampled_text_is_that_of_the_whole_cache(evicting: PreTrainedModel, keeping: PreTrainedModel) -> None:
    drawn = []
    for model in (evicting, keeping):
        set_seed(5)
        drawn.append(greedy(model, tokens(2, LENGTH), do_sample=True, top_p=0.9, num_return_sequences=2))
    assert torch.equal(*drawn)
    assert len({tuple(row.tolist()) for row in drawn[0]}) == 4


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beams_are_those_of_the_whole_cache(
    evicting: PreTrainedModel, keeping: PreTrainedModel, settings: dict[str, int]
) -> None:
    for given in (tokens(2, LENGTH), left_padded(ROWS)):
        assert torch.equal(greedy(evicting, given, **settings), greedy(keeping, given, **settings))


def test_a_prompt_in_chunks_gives_the_same_text(evicting: PreTrainedModel, text: Tensor) -> None:
    for size in (16, 59):
        assert torch.equal(greedy(evicting, tokens(2, LENGTH), prefill_chunk_size=size), text)


def test_a_static_cache_gives_the_same_text(family: str, evicting: PreTrainedModel, text: Tensor) -> None:
    """Also where some layers would keep a window alone: those keep every key."""
    ids = tokens(2, LENGTH)
    if family == "mistral":
        with pytest.raises(ValueError, match="does not say how long it may become"):
            greedy(evicting, ids, cache_implementation="static")
        return
    assert torch.equal(greedy(evicting, ids, cache_implementation="static"), text)
    assert torch.equal(greedy(evicting, ids, cache_implementation="static", prefill_chunk_size=16), text)
    padded = left_padded(ROWS)
    assert torch.equal(greedy(evicting, padded, cache_implementation="static"), greedy(evicting, padded))
    for _ in range(2):  # the second time with the memory of the first
        cache = StaticCache(config=evicting.config, max_cache_len=LENGTH + NEW)
        assert torch.equal(greedy(evicting, ids, **{cache_name(evicting): cache}), text)


def test_guesses_of_an_assistant_change_nothing(family: str, keeping: PreTrainedModel) -> None:
    """The cache must go back where a guess was wrong, which one that keeps all can."""
    ids = tokens(1, LENGTH)
    right = greedy(keeping, ids)
    assert torch.equal(greedy(keeping, ids, assistant_model=tiny(family)), right)
    assert torch.equal(greedy(keeping, ids, assistant_model=sparsify(tiny(family), SPARSE, evict=False)), right)


@pytest.mark.parametrize("padded", [False, True], ids=["one length", "padded"])
def test_a_chat_goes_on_with_the_cache_of_its_first_turn(evicting: PreTrainedModel, padded: bool) -> None:
    """The same as the whole chat at once, with an empty `DynamicCache` that the caller made."""
    first = left_padded(ROWS) if padded else left_padded([row[-40:] for row in ROWS])
    for cache in (DynamicCache(), DynamicCache(config=evicting.config)):
        settings = {cache_name(evicting): cache}
        said = torch.cat([first["input_ids"], greedy(evicting, first, 10, **settings)], dim=1)
        second = torch.cat([said, tokens(3, 15, seed=9)], dim=1)
        mask = torch.cat([first["attention_mask"], torch.ones(3, 25, dtype=torch.long)], dim=1)
        given = {"input_ids": second, "attention_mask": mask}
        right = greedy(evicting, given, 10)
        assert torch.equal(greedy(evicting, given, 10, **settings), right)
        assert all(isinstance(layer, EvictingLayer) for layer in cache.layers)


def test_many_texts_go_on_from_copies_of_one_prefix(evicting: PreTrainedModel) -> None:
    """As transformers' documentation reuses a prompt: the cache of the prefix is copied for each."""
    prefix, name = tokens(1, 30), cache_name(evicting)
    cache = getattr(evicting(prefix, **{name: DynamicCache()}), name)
    for seed in (3, 4):
        prompt = torch.cat([prefix, tokens(1, 12, seed=seed)], dim=1)
        assert torch.equal(greedy(evicting, prompt, **{name: deepcopy(cache)}), greedy(evicting, prompt))
    assert cache.get_seq_length() == 30


def test_a_cache_repeats_and_selects_its_sequences(evicting: PreTrainedModel) -> None:
    name, ids = cache_name(evicting), tokens(2, 40)
    order, following = torch.tensor([3, 0, 1]), tokens(3, 1, seed=8)
    cache = getattr(evicting(ids), name)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(order)
    whole = torch.cat([ids.repeat_interleave(2, 0)[order], following], dim=1)
    torch.testing.assert_close(
        evicting(following, **{name: cache}).logits[:, -1], evicting(whole).logits[:, -1], rtol=0, atol=1e-5
    )
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(evicting(ids, **{name: cache}).logits, evicting(ids).logits)


BOUNDED = {
    "window and sinks": Window(20) | Sinks(2),
    "a pattern a head": PerHead([(Window(7), 2), (Window(30) | Sinks(1), 2)]),
    "dilated": Dilated(6, step=3),
}


@pytest.mark.parametrize("pattern", BOUNDED.values(), ids=BOUNDED)
def test_memory_is_flat_where_the_pattern_is_bounded(family: str, pattern: Pattern) -> None:
    model = sparsify(tiny(family), pattern)
    name, sizes = cache_name(model), {}
    cache = getattr(model(tokens(1, 90)), name)
    for end in (100, 400):
        model(tokens(1, end - cache.get_seq_length() - 8), **{name: cache})
        for token in tokens(8):
            model(token.reshape(1, 1), **{name: cache})
        assert cache.get_seq_length() == end
        sizes[end] = [layer.nbytes for layer in cache.layers]
    assert sizes[100] == sizes[400]
    assert max(sizes[400]) <= 2 * 4 * (32 * 32)  # two tensors of 32 keys of 32 float32 in all heads


def test_strides_grow_by_what_they_read() -> None:
    """Of 400 tokens a stride of 10 reads 40 again; memory doubles where it grows, so it is at most twice that."""
    model = sparsify(tiny("llama"), Strided(10))
    name = cache_name(model)
    cache = getattr(model(tokens(1, 100)), name)
    for token in tokens(300):
        model(token.reshape(1, 1), **{name: cache})
    assert [layer.held.held for layer in cache.layers] == [40] * 3
    assert max(layer.nbytes for layer in cache.layers) <= 2 * 2 * 4 * 16 * 40


@pytest.mark.parametrize("name", ["gemma3"])
def test_a_compiled_forward_writes_the_same_text(name: str) -> None:
    torch.compiler.reset()
    model, ids = sparsify(tiny(name), SPARSE), tokens(2, LENGTH)
    right = greedy(model, ids, 4)
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    assert torch.equal(greedy(model, ids, 4), right)
    assert torch.equal(greedy(model, ids, 4, cache_implementation="static", disable_compile=True), right)


def test_embeddings_may_begin_a_text(evicting: PreTrainedModel, text: Tensor) -> None:
    embeddings = evicting.get_input_embeddings()(tokens(2, LENGTH))
    assert torch.equal(evicting.generate(inputs_embeds=embeddings, max_new_tokens=NEW, do_sample=False), text)


def test_a_model_in_training_writes_the_same_text(family: str, text: Tensor) -> None:
    """As in reinforcement learning: the cache keeps all then."""
    model = sparsify(tiny(family), SPARSE).train()
    assert torch.equal(greedy(model, tokens(2, LENGTH)), text)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(VOCABULARY)}
    path: Path = tmp_path_factory.mktemp("words") / "words.json"
    path.write_text(json.dumps(words))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", padding_side="left")


def test_a_pipeline_writes_the_same_text(evicting: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [" ".join(f"w{token}" for token in row.tolist()) for row in ROWS]
    write = pipeline("text-generation", model=evicting, tokenizer=tokenizer, device="cpu")
    settings = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    right = [tokenizer.decode(greedy(evicting, row[None], 8)[0], skip_special_tokens=True) for row in ROWS]
    for batch in (1, 3):
        found = write(prompts, batch_size=batch, **settings)
        assert [one["generated_text"].split() for (one,) in found] == [text.split() for text in right]


def test_dense_layers_are_kept_whole() -> None:
    """What {layer: pattern} leaves out stays dense: its keys are all held, and those of the others are not."""
    model = sparsify(tiny("llama"), MIXED)
    cache = getattr(model(tokens(1, LENGTH)), cache_name(model))
    assert [layer.held.held for layer in cache.layers] == [11, LENGTH, 16]
    assert cache.layers[1].pattern == Causal() & Causal()
