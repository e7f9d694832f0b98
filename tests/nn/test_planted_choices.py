"""Each fault that a layer with a choice may have, planted once: the tests of the layer see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gossamer.indexed import Selection, top_keys
from gossamer.nn import KVCache, LatentAttention, LightningIndexer, indexing, latent
from tests.nn import test_latent


def future_keys(patch: pytest.MonkeyPatch) -> None:
    def choose(self: LightningIndexer, q: Tensor, k: Tensor, weights: Tensor, **_: Tensor | None) -> Tensor:
        return top_keys(q, k, weights, self.config.index_topk, causal=False)

    patch.setattr(LightningIndexer, "choose", choose)


def nothing_scattered_to_the_first(patch: pytest.MonkeyPatch) -> None:
    class Scattered(Selection):
        def __post_init__(self) -> None:
            object.__setattr__(self, "indices", self.indices.clamp(min=0))
            super().__post_init__()

    patch.setattr(indexing, "Selection", Scattered)


def padding_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(latent, "located", lambda *_: None)


def keys_not_moved_back(patch: pytest.MonkeyPatch) -> None:
    right = indexing.chosen

    def chosen(indexer: LightningIndexer, index: object, within: Tensor | None = None) -> Selection | None:
        found = right(indexer, index, within)
        if found is None or within is None:
            return found
        indices = found.indices - within[:, :1, None, None].to(found.indices.dtype)
        return Selection(indices.masked_fill(found.indices < 0, -1))

    patch.setattr(latent, "chosen", chosen)


def values_of_the_whole_latent(patch: pytest.MonkeyPatch) -> None:
    right = latent.attend_latent

    def attend(q: Tensor, latents: Tensor, selection: Selection, **settings: object) -> tuple[Tensor, Tensor]:
        return right(q, latents.roll(1, -1), selection, **settings)

    patch.setattr(latent, "attend_latent", attend)


def old_index_keys_forgotten(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.extend

    def extend(self: KVCache, layer: int, new: list[Tensor]) -> list[Tensor]:
        first, *rest = right(self, layer, new)
        return [first, *(x.clone().index_fill_(1, torch.arange(self.length), 0.0) for x in rest)]

    patch.setattr(KVCache, "extend", extend)


def positions_that_start_anew(patch: pytest.MonkeyPatch) -> None:
    right = latent.positions
    patch.setattr(latent, "positions", lambda tokens, cache, device: right(tokens, None, device))


def scale_of_the_absorbed_width(patch: pytest.MonkeyPatch) -> None:
    right = latent.attend_latent
    patch.setattr(latent, "attend_latent", lambda *given, scale, **rest: right(*given, scale=None, **rest))


def gradients_into_the_indexer(patch: pytest.MonkeyPatch) -> None:
    right = LatentAttention.forward

    def forward(self: LatentAttention, x: Tensor, *given: object, **settings: object) -> object:
        return right(self, x, *given, **settings) + 0.0 * self.indexer.wk.weight.sum()

    patch.setattr(LatentAttention, "forward", forward)


FAULTS: dict[Callable[[pytest.MonkeyPatch], None], Callable[[], None]] = {
    future_keys: lambda: test_latent.test_later_tokens_leave_earlier_outputs_bit_equal("indexed", "mqa"),
    nothing_scattered_to_the_first: lambda: test_latent.test_sequences_within_rows_are_those_alone("indexed", "mha"),
    padding_not_counted: lambda: test_latent.test_padding_before_a_sequence_changes_nothing_in_it(
        "indexed", [40], "mha"
    ),
    keys_not_moved_back: lambda: test_latent.test_sequences_within_rows_are_those_alone("indexed", "mqa"),
    values_of_the_whole_latent: lambda: test_latent.test_it_is_the_formula("indexed", "mqa"),
    old_index_keys_forgotten: lambda: test_latent.test_decoding_in_pieces_is_one_forward(
        "indexed", [30] + [1] * 20, "mqa"
    ),
    positions_that_start_anew: lambda: test_latent.test_decoding_in_pieces_is_one_forward(
        "dense", [30] + [1] * 20, "mha"
    ),
    scale_of_the_absorbed_width: lambda: test_latent.test_it_is_the_formula("indexed", "mqa"),
    gradients_into_the_indexer: lambda: test_latent.test_the_language_model_s_loss_leaves_the_indexer_alone("mqa"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_seen(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault]()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        FAULTS[fault]()
