"""Every token of a layer, kept: in order, in any mode, with gradients of the newest and room for no more than come."""

from __future__ import annotations

import pytest
import torch

from gossamer.nn.cache import KVCache
from gossamer.nn.whole_cache import WholeCache


def things(tokens: int) -> list[torch.Tensor]:
    return [torch.randn(2, tokens, 6), torch.randn(2, 3, tokens, 4)]


@pytest.mark.parametrize("pieces", [[1] * 40, [33, 1, 1, 5], [1, 39], [40], [0, 40], [7, 0, 33]])
def test_pieces_come_back_as_one(pieces: list[int]) -> None:
    whole, cache = things(40), WholeCache()
    for parts in zip(*(x.split(pieces, dim=-2) for x in whole), strict=True):
        held = cache.extend(parts)
    for x, y in zip(held, whole, strict=True):
        assert torch.equal(x, y)
    assert cache.seen == 40


def test_a_token_is_written_and_the_past_is_not_copied() -> None:
    cache = WholeCache()
    cache.extend(things(16))
    cache.extend(things(1))
    before = [rows.data_ptr() for rows in cache.rows]
    for _ in range(17):
        cache.extend(things(1))
    assert [rows.data_ptr() for rows in cache.rows] == before
    assert cache.rows[0].shape[-2] == 34


def test_no_more_room_is_taken_than_for_the_tokens_that_come() -> None:
    cache = WholeCache()
    for tokens in (16, 1, 3):
        cache.extend(things(tokens), most=20)
    assert [rows.shape[-2] for rows in cache.rows] == [20, 20]
    assert cache.nbytes == 2 * 20 * (6 + 12) * 4


def test_gradients_reach_the_newest_tokens() -> None:
    cache, first, second = WholeCache(), *(torch.randn(1, n, 2, requires_grad=True) for n in (3, 2))
    (held,) = cache.extend([first])
    held.sum().backward()
    assert torch.equal(first.grad, torch.ones(1, 3, 2))
    first.grad = None
    (held,) = cache.extend([second])
    cache.extend([torch.randn(1, 1, 2)])
    held.square().sum().backward()
    torch.testing.assert_close(second.grad, 2 * second.detach())
    assert first.grad is None


def test_what_was_filled_in_inference_mode_goes_on_outside() -> None:
    cache = WholeCache()
    with torch.inference_mode():
        cache.extend(things(4))
        cache.extend(things(4))
    cache.pick(torch.tensor([1, 1, 0]))
    held = cache.extend([torch.zeros(3, 1, 6), torch.zeros(3, 3, 1, 4)])
    assert torch.equal(held[0][0], held[0][1]) and not torch.equal(held[0][0], held[0][2])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ([], "give \\[batch"),
        ([torch.zeros(2, 4)], "give \\[batch, ..., length, width\\]"),
        ([torch.zeros(2, 4, 6), torch.zeros(2, 3, 5, 4)], "all of one batch and one length"),
        ([torch.zeros(2, 4, 6)], "but the cache holds"),
        ([torch.zeros(2, 4, 6).double(), torch.zeros(2, 3, 4, 4)], "float64 .* but the cache holds"),
        ([torch.zeros(1, 4, 6), torch.zeros(1, 3, 4, 4)], "the next tokens of the sequences that it began with"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(new: list[torch.Tensor], message: str) -> None:
    cache = WholeCache()
    cache.extend(things(4))
    with pytest.raises(ValueError, match=message):
        cache.extend(new)
    assert cache.seen == 4


def test_layers_of_a_model_s_cache_stand_at_one_place_and_count_their_bytes() -> None:
    cache = KVCache(8)
    for layer in (0, 1):
        cache.extend(layer, things(5))
    assert cache.nbytes == 2 * 2 * 5 * (6 + 12) * 4
    with pytest.raises(ValueError, match="layer 0 has taken 5 tokens, but 0 are counted"):
        cache.extend(0, things(1))
    cache.advance(5)
    with pytest.raises(ValueError, match=r"full: 5 of capacity=8 .* 4 more .* capacity=9"):
        cache.extend(0, things(4))
    assert cache.extend(0, things(3))[0].shape == (2, 8, 6)
