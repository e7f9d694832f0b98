"""The tests look: each fault, planted once, makes a test fail that the sound code passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import PreTrainedModel

from gossamer import Documents, sparsify
from gossamer.integrations.huggingface import attention, forward, frame, layers
from gossamer.integrations.huggingface.cache import EvictingLayer
from gossamer.nn import layer_cache, survivors
from gossamer.nn.layer_cache import LayerCache, Scores
from gossamer.patterns import Excerpt, parse
from gossamer.patterns.lifetimes import Lifetimes, lifetimes
from tests.integrations.huggingface import test_generate, test_sparsify, test_switch_errors, test_training
from tests.integrations.huggingface.families import PATTERNS, SPARSE, tiny

Plant = Callable[[pytest.MonkeyPatch], None]


def instead(owner: object, name: str, value: object) -> Plant:
    return lambda patch: patch.setattr(owner, name, value)


def sparse(family: str, *, evict: bool = True) -> PreTrainedModel:
    return sparsify(tiny(family), SPARSE, evict=evict)


def _last_token_twice(patch: pytest.MonkeyPatch) -> None:
    sound = LayerCache.attend

    def faulty(cache: LayerCache, q: torch.Tensor, *given: object) -> torch.Tensor:
        out = sound(cache, q, *given)
        cache.seen += q.shape[2] == 1
        return out

    patch.setattr(LayerCache, "attend", faulty)


def padded(evict: bool) -> Callable[[], None]:
    return lambda: test_sparsify.test_padding_before_a_sequence_changes_nothing("llama", sparse("llama", evict=evict))


def masks(family: str, pattern: str = "window and sinks") -> Callable[[], None]:
    return lambda: test_sparsify.test_a_sparse_pattern_gives_the_logits_of_its_dense_mask(family, PATTERNS[pattern])


def cached(pieces: list[int]) -> Callable[[], None]:
    return lambda: test_sparsify.test_a_cache_changes_nothing(sparse("llama"), pieces)


def beams() -> None:
    test_generate.test_beams_are_those_of_the_whole_cache(
        sparse("llama"), sparse("llama", evict=False), {"num_beams": 3}
    )


FAULTS: dict[str, tuple[Plant, Callable[[], None]]] = {
    "padding is ignored by caches": (instead(LayerCache, "pad", lambda cache, padding: None), padded(True)),
    "padding is ignored without a cache": (instead(forward, "leading_padding", lambda mask, new: None), padded(False)),
    "a layer's own window is ignored": (instead(layers, "own_window", lambda module: None), masks("mistral")),
    "every layer slides": (instead(layers, "own_window", lambda module: 24), masks("gemma2", "a pattern a head")),
    "the softcap is lost": (
        instead(attention, "Scores", lambda scale, softcap, *rest: Scores(scale, None, *rest)), masks("gemma2"),
    ),
    "sinks of attention are lost": (
        instead(attention, "Scores", lambda scale, softcap, sinks, *rest: Scores(scale, softcap, None, *rest)),
        masks("gpt_oss"),
    ),
    "the scale is lost": (
        instead(attention, "Scores", lambda scale, *rest: Scores(None if scale is None else 2 * scale, *rest)),
        masks("gemma3"),
    ),
    "heads share a pattern": (
        instead(layers, "parse", lambda text: parse(text).for_head(0)), masks("llama", "a pattern a head"),
    ),
    "positions of a cache are shifted by one": (
        instead(layer_cache, "Excerpt", lambda pattern, kept, start: Excerpt(pattern, kept, start + 1)),
        cached([30, 30]),
    ),
    "keys are dropped before their last query": (
        instead(survivors, "lifetimes", lambda *given: Lifetimes((found := lifetimes(*given)).last - 2, found.steady)),
        cached([1] * 60),
    ),
    "a step is counted twice": (
        _last_token_twice,
        lambda: test_generate.test_a_chat_goes_on_with_the_cache_of_its_first_turn(sparse("llama"), False),
    ),
    "kept keys are taken for the ones before the new": (
        instead(layer_cache, "Excerpt", lambda pattern, kept, start: pattern), cached([30, 30]),
    ),
    "packs count from their start": (
        instead(frame, "Packed", lambda pattern, lengths: pattern & Documents(lengths)),
        lambda: test_sparsify.test_packed_sequences_are_as_if_they_came_alone(sparse("llama")),
    ),
    "packs are not found": (
        instead(forward, "_documents", lambda inputs, tokens: None),
        lambda: test_sparsify.test_packed_sequences_are_as_if_they_came_alone(sparse("llama")),
    ),
    "the future is seen": (
        instead(layers, "_within", lambda text, window: parse(text)),
        lambda: test_sparsify.test_no_token_sees_a_later_one(sparse("llama")),
    ),
    "beams keep each other's keys": (instead(EvictingLayer, "reorder_cache", lambda layer, order: None), beams),
    "sliding layers drop keys": (
        instead(forward, "keep_all", lambda cache: None),
        lambda: test_sparsify.test_a_cache_that_keeps_all_changes_nothing("gemma2", sparse("gemma2")),
    ),
    "nothing is dropped": (
        instead(forward, "take_over", lambda cache, patterns: None),
        lambda: test_generate.test_a_chat_goes_on_with_the_cache_of_its_first_turn(sparse("llama"), False),
    ),
    "gradients stop at attention": (
        instead(Scores, "attend", lambda scores, *given: _sound_attend(scores, *given).detach()),
        lambda: test_training.test_gradients_are_those_of_the_dense_mask("llama", SPARSE),
    ),
    "a cache of other patterns is read": (
        instead(forward, "await_keys", lambda cache, patterns: [setattr(x, "turn", "keys") for x in cache.layers]),
        test_switch_errors.test_a_cache_of_other_patterns_is_refused,
    ),
}  # fmt: skip

_sound_attend, _sound_within = Scores.attend, layers._within


def forget() -> None:
    """Empties what is kept of patterns and of the keys that they read."""
    for kept in (_sound_within, survivors.survivors, survivors.ring_of):
        kept.cache_clear()


@pytest.fixture(autouse=True)
def cold_caches() -> Iterator[None]:
    """Nothing that a fault made outlives it."""
    yield
    forget()


@pytest.mark.parametrize(("plant", "check"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(plant: Plant, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.set_grad_enabled("test_training" in check.__code__.co_names):
        check()
        forget()
        plant(monkeypatch)
        with pytest.raises((AssertionError, ValueError, RuntimeError, pytest.fail.Exception)):
            check()
