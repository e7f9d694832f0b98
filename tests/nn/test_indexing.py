"""Places of all keys, and where sequences lie among them."""

from __future__ import annotations

import torch

from gossamer.nn.cache import KVCache
from gossamer.nn.indexing import all_places, located


def test_places_of_all_keys_are_one_row_for_each_sequence() -> None:
    places, outside = all_places(6, 2, None, torch.device("cpu"))
    assert places.tolist() == [[0, 1, 2, 3, 4, 5]] and outside is None
    within = torch.tensor([[0, 6], [1, 5], [6, 6]], dtype=torch.int32)
    places, outside = all_places(6, 2, within, within.device)
    assert places.dtype == torch.int32
    assert places.tolist() == [[0, 1, 2, 3, 4, 5], [-1, 1, 2, 3, 4, -1], [-1] * 6]
    assert outside is not None and outside.tolist() == [[[False, False]], [[False, True]], [[True, True]]]


def test_sequences_are_located_by_the_cache_or_by_the_caller() -> None:
    given, device = torch.tensor([[0, 3], [1, 3]], dtype=torch.int32), torch.device("cpu")
    assert located(None, None, 3, device) is None and located(None, given, 3, device) is given
    assert located(KVCache(9), None, 3, device) is None and located(KVCache(9, padding=[0, 0]), None, 3, device) is None
    cache = KVCache(9, padding=[0, 4])
    assert located(cache, None, 3, device).tolist() == [[0, 3], [4, 3]]
    cache.advance(3)
    assert located(cache, None, 2, device).tolist() == [[0, 5], [4, 5]]
