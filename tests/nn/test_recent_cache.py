"""`RecentCache`: the newest tokens, as many as asked, in any mode."""

from __future__ import annotations

import pytest
import torch

from gossamer.nn.recent_cache import RecentCache


@pytest.mark.parametrize("keep", [0, 1, 5, 99])
@pytest.mark.parametrize("pieces", [[20], [1] * 20, [3, 0, 16, 1]], ids=str)
def test_it_holds_the_newest(keep: int, pieces: list[int]) -> None:
    cache, x = RecentCache(), torch.randn(2, 3, 20, 4)
    end = 0
    for piece in x.split(pieces, dim=2):
        first, end = max(end - keep, 0), end + piece.shape[2]
        a, b = cache.extend([piece, -piece], keep)
        assert torch.equal(a, x[:, :, first:end]) and torch.equal(b, -a)
    assert cache.seen == 20 and cache.nbytes == 2 * 2 * 3 * min(keep, 20) * 4 * 4


def test_gradients_reach_the_new_tokens_alone() -> None:
    cache, x = RecentCache(), torch.randn(1, 4, 2, requires_grad=True)
    cache.extend([x], 4)
    new = torch.randn(1, 1, 2, requires_grad=True)
    (every,) = cache.extend([new], 4)
    every.sum().backward()
    assert x.grad is None and torch.equal(new.grad, torch.ones_like(new))


def test_what_came_in_inference_mode_is_used_outside() -> None:
    cache = RecentCache()
    with torch.inference_mode():
        cache.extend([torch.ones(1, 2, 3)], 1)
    new = torch.ones(1, 1, 3, requires_grad=True)
    cache.extend([new], 1)[0].sum().backward()
    assert new.grad is not None
