"""Choices within rows, all keys as a choice, and what an indexer learns from a layer."""

from __future__ import annotations

import pytest
import torch

from gossamer import Causal, attend
from gossamer.indexed import attend_latent
from gossamer.nn.cache import KVCache
from gossamer.nn.indexing import all_keys, located


@pytest.mark.parametrize("within", [None, [[0, 20], [3, 17], [20, 20]]])
@pytest.mark.parametrize("queries", [1, 7, 20])
def test_all_keys_as_a_choice_are_all_keys(queries: int, within: list[list[int]] | None) -> None:
    q, latents = torch.randn(3, 4, queries, 12).double(), torch.randn(3, 20, 12).double()
    places = None if within is None else torch.tensor(within, dtype=torch.int32)
    found = attend_latent(
        q, latents, all_keys(3, queries, 20, places, q.device), value_width=8, scale=0.3, return_lse=True
    )
    k = latents[:, None]
    right = attend(q, k, k[..., :8], Causal(), scale=0.3, within=places, return_lse=True)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-13)


def test_sequences_are_located_by_the_cache_or_by_the_caller() -> None:
    given, device = torch.tensor([[0, 3], [1, 3]], dtype=torch.int32), torch.device("cpu")
    assert located(None, None, 3, device) is None and located(None, given, 3, device) is given
    assert located(KVCache(9), None, 3, device) is None and located(KVCache(9, padding=[0, 0]), None, 3, device) is None
    cache = KVCache(9, padding=[0, 4])
    assert located(cache, None, 3, device).tolist() == [[0, 3], [4, 3]]
    cache.advance(3)
    assert located(cache, None, 2, device).tolist() == [[0, 5], [4, 5]]
