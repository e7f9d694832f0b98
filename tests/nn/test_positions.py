"""Rotation by position: relative, without change of length, and in step with a cache."""

import pytest
import torch

from gossamer.nn.cache import KVCache
from gossamer.nn.positions import positions, rotated


def test_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 3, 1, 16, dtype=torch.float64)

    def product(at: int, other: int) -> torch.Tensor:
        return (rotated(q, torch.tensor([at])) * rotated(k, torch.tensor([other]))).sum(-1)

    torch.testing.assert_close(product(1007, 1000), product(7, 0))
    assert not torch.allclose(product(7, 0), product(0, 7))


def test_lengths_stay_and_the_first_position_changes_nothing() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    turned = rotated(x, torch.arange(5))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])


def test_it_is_the_published_formula() -> None:
    """Against complex numbers: feature i and i + D/2 as one number, times e^(i·position·rate)."""
    x, at = torch.randn(1, 2, 6, 10, dtype=torch.float64), torch.arange(6) * 31
    numbers = torch.complex(x[..., :5], x[..., 5:])
    rates = torch.tensor([10_000 ** (-2 * i / 10) for i in range(5)], dtype=torch.float64)
    turned = numbers * torch.polar(torch.ones(6, 5, dtype=torch.float64), at[:, None] * rates)
    torch.testing.assert_close(rotated(x, at), torch.cat([turned.real, turned.imag], dim=-1))


def test_far_positions_keep_their_meaning_in_half_precision() -> None:
    x, at = torch.randn(1, 1, 1, 64, dtype=torch.float64), torch.tensor([32_000])
    found = rotated(x.bfloat16(), at).double()
    torch.testing.assert_close(found, rotated(x.bfloat16().double(), at), rtol=0, atol=0.05)


def test_positions_go_on_from_a_cache_and_skip_its_padding() -> None:
    device = torch.device("cpu")
    assert positions(3, KVCache(8), device).tolist() == [0, 1, 2]
    padded = KVCache(8, padding=(0, 2))
    assert positions(3, padded, device).tolist() == [[0, 1, 2], [0, 0, 0]]
    padded.advance(3)
    assert positions(2, padded, device).tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize("heads", [1, 3])
def test_each_sequence_turns_by_its_own_positions(heads: int) -> None:
    x, at = torch.randn(2, heads, 4, 6), torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])
    both = rotated(x, at)
    for row in range(2):
        torch.testing.assert_close(both[row : row + 1], rotated(x[row : row + 1], at[row]))
