"""`StreamingAttention`: a cache of the first and last tokens whose places are the positions, in one go or in pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer import attend, presets
from gossamer.nn.positions import rotated
from gossamer.nn.streaming import StreamingAttention, StreamingCache
from tests.causal_modules import check_gradients_reach, check_no_leak, check_picked, check_pieces, check_slope


def layer(window: int = 8, sinks: int = 3, key_heads: int = 2) -> StreamingAttention:
    torch.manual_seed(0)
    return StreamingAttention(24, 4, key_heads, window=window, sinks=sinks).double()


def inputs(length: int = 50) -> Tensor:
    return 3.0 * torch.randn(2, length, 24, dtype=torch.float64)


def through_a_real_cache(made: StreamingAttention, x: Tensor) -> Tensor:
    """The paper's way: keys are held without positions, and turned by their places in the cache at each token."""
    q, k, v = made.project(x)
    k, v = (each.repeat_interleave(made.heads // made.key_heads, 1) for each in (k, v))
    outs = []
    for t in range(x.shape[1]):
        held = sorted({*range(min(made.sinks, t + 1)), *range(max(0, t - made.window + 1), t + 1)})
        places = torch.arange(len(held))
        query, keys = rotated(q[:, :, t : t + 1], places[-1:]), rotated(k[:, :, held], places)
        outs.append((query @ keys.mT * made.head_width**-0.5).softmax(-1) @ v[:, :, held])
    return made.merge(torch.cat(outs, 2))


@pytest.mark.parametrize(("window", "sinks"), [(8, 3), (1, 4), (4, 1), (30, 30), (100, 4)])
@pytest.mark.parametrize("length", [1, 3, 50])
def test_positions_are_places_in_the_cache(window: int, sinks: int, length: int) -> None:
    made, x = layer(window, sinks), inputs(length).requires_grad_()
    found, right = made(x), through_a_real_cache(made, x)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-11)
    leaves = [x, *made.parameters()]
    grads = [torch.autograd.grad(out.square().sum(), leaves) for out in (found, right)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_until_the_cache_is_full_it_is_the_preset_at_true_positions() -> None:
    made, x = layer(), inputs(30)
    q, k, v = made.project(x)
    at = torch.arange(30)
    plain = made.merge(attend(rotated(q, at), rotated(k, at), v, presets.streaming(8, 3)))
    full = 8 + 3
    torch.testing.assert_close(made(x)[:, :full], plain[:, :full], rtol=1e-9, atol=1e-11)
    assert (made(x)[:, full:] - plain[:, full:]).abs().amax(-1).min() > 1e-6  # from then on it is not


def test_a_window_of_everything_is_full_attention() -> None:
    made, x = layer(window=50), inputs()
    q, k, v = made.project(x)
    q, k = rotated(q, torch.arange(50)), rotated(k, torch.arange(50))
    torch.testing.assert_close(made(x), made.merge(attend(q, k, v, presets.streaming(50, 3))), rtol=1e-9, atol=1e-11)


def test_nothing_of_the_future_is_seen() -> None:
    check_no_leak(layer(), inputs(40), range(40))


@pytest.mark.parametrize("pieces", [[1] * 50, [2, 1, 18, 29], [50], [1, 49]], ids=str)
def test_pieces_through_a_cache_equal_the_whole(pieces: list[int]) -> None:
    check_pieces(layer(), StreamingCache, inputs(), pieces)


def test_a_cache_goes_on_with_picked_sequences() -> None:
    check_picked(layer(), StreamingCache, inputs(), 30)


def test_the_cache_is_of_fixed_size() -> None:
    cache, made = StreamingCache(), layer()
    sizes = set()
    with torch.no_grad():
        for t in range(60):
            made(inputs(1)[:1], cache=cache)
            sizes |= {cache.nbytes} if t > 11 else set()
    assert cache.seen == 60 and sizes == {2 * 2 * 6 * (3 + 7) * 8}  # keys and values of 2 heads of width 6


def test_gradients_reach_every_parameter_and_are_slopes() -> None:
    made = layer()
    check_gradients_reach(made, made(inputs()))
    check_slope(made, inputs(20))


def test_four_first_tokens_are_the_default_and_sizes_are_checked() -> None:
    assert StreamingAttention(24, 4, window=8).sinks == 4
    with pytest.raises(ValueError, match="StreamingAttention: window is 0"):
        StreamingAttention(24, 4, window=0)
