"""Bands in tiles: the streaming kernels meet every pair, and take the widths that their rings are made for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels' package needs Triton")

from gossamer.kernels.hopper import bands, stream_backward, stream_forward
from gossamer.kernels.hopper.configs import ROWS, halo_of

GEOMETRIES = [
    (queries, keys, shift, width)
    for queries, keys in ((1, 1), (65, 65), (200, 330), (330, 200))
    for shift in (-150, -1, 0, 63, 130, 300)
    for width in (1, 64, 65, 200)
]


@pytest.mark.parametrize(("queries", "keys", "shift", "width"), GEOMETRIES)
def test_every_pair_lies_in_a_tile_that_passes_through_the_ring(queries, keys, shift, width) -> None:
    q, k = torch.empty(1, 1, queries, 8), torch.empty(1, 1, keys, 8)
    halo = halo_of(width)
    by_query, by_key = bands.of_queries(q, k, shift, width), bands.of_keys(q, k, shift, width)
    assert by_query.tiles * ROWS >= queries and by_key.tiles * ROWS >= keys
    for i in range(queries):
        for j in range(max(0, i + shift - width + 1), min(keys, i + shift + 1)):
            tile = (j - shift) // ROWS  # key tiles start at 64 tile + shift, query tiles at 64 tile
            assert 0 <= i // ROWS - tile <= halo and -by_query.extra <= tile < by_query.tiles
            tile = (i + shift) // ROWS  # query tiles start at 64 tile - shift, key tiles at 64 tile
            assert 0 <= tile - j // ROWS <= halo and tile < by_key.tiles + by_key.extra


@pytest.mark.parametrize(
    ("width", "head_width", "value_width", "forward", "backward"),
    [
        (1, 64, 64, True, True),
        (384, 64, 40, True, True),
        (385, 64, 64, False, False),
        (256, 128, 128, True, False),
        (257, 128, 128, False, False),
    ],
)
def test_a_ring_fits_or_it_does_not(width, head_width, value_width, forward, backward) -> None:
    assert stream_forward.fits(width, head_width, value_width) is forward
    assert stream_backward.fits(width, head_width, value_width) is backward
