"""Pictures in characters, and the shares behind them."""

import numpy as np
import pytest

from gossamer.patterns import Causal, PerHead, Sinks, Strided, Window
from gossamer.patterns.drawing import drawing, occupancy
from tests.patterns_list import PATTERNS


@pytest.mark.parametrize("name", [name for name, pattern in PATTERNS.items() if not pattern.head_cuts])
def test_small_cells_are_exact(name: str) -> None:
    mask = PATTERNS[name].dense_mask(120)
    shares = mask.reshape(12, 10, 12, 10).mean(axis=(1, 3))
    np.testing.assert_allclose(occupancy(PATTERNS[name], 120, 12), shares)


def test_large_cells_are_estimated() -> None:
    """A million tokens cost no more than a thousand; every 10th key is a share of a tenth."""
    shares = occupancy(Strided(10), 2**20, 16)
    assert shares.shape == (16, 16)
    assert abs(shares.mean() - 0.1) < 0.01
    whole = occupancy(Causal(), 2**20, 16)
    assert (np.tril(whole, -1)[np.tri(16, k=-1, dtype=bool)] == 1).all() and not np.triu(whole, 1).any()


def test_a_cell_with_anything_visible_is_never_blank() -> None:
    picture = drawing(Sinks(1), 320, 10).splitlines()[2]
    assert picture[1] != " " and picture[3] == " "


def test_more_cells_than_positions_are_one_a_position() -> None:
    assert occupancy(Causal(), 3, 48).tolist() == np.tri(3).tolist()


def test_one_picture_for_each_group_of_heads() -> None:
    picture = drawing(PerHead([(Window(1), 2), (Causal(), 3)]), 2, 2)
    assert picture.splitlines() == [
        "heads 0-1: Window(size=1)",
        "┌────┐",
        "│██  │",
        "│  ██│",
        "└────┘",
        "",
        "heads 2-4: Causal()",
        "┌────┐",
        "│██  │",
        "│████│",
        "└────┘",
    ]
