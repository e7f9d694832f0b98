"""How the streaming kernels see a band: its geometry in tiles, passed to them as numbers, so that one serves all."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from triton import reinterpret
from triton.experimental.gluon import language as gl
from triton.runtime.jit import TensorWrapper

from .configs import ROWS, halo_of


class Band(NamedTuple):
    """Query i sees key j iff 0 <= i + shift - j < width and 0 <= j < keys."""

    shift: int
    width: int
    queries: int
    keys: int
    heads: int
    tiles: int
    """Tiles of one head, of queries or of keys, whichever the kernel owns."""
    extra: int
    """Tiles of the other side that a head needs beyond one for each tile that it owns."""
    total: int
    """Owned tiles of all batches and heads."""


class Rows(NamedTuple):
    """One value a query: [B, H, Q] with strides for the first two axes, the last being dense; or nothing."""

    pointer: Tensor | TensorWrapper | None
    batch: int
    head: int


NUMBERS = (*Band._fields, "scale")
"""Arguments that no kernel is compiled anew for. They come one by one: for those in a tuple, Triton would."""


def of_queries(q: Tensor, k: Tensor, shift: int, width: int) -> Band:
    """The band for a kernel that owns query tiles: a head's first ones may see keys before its own diagonal."""
    before = min(max((shift + ROWS - 1) // ROWS, 0), halo_of(width))
    return _band(q, k, shift, width, q.shape[2], before)


def of_keys(q: Tensor, k: Tensor, shift: int, width: int) -> Band:
    """The band for a kernel that owns key tiles: the last ones read query tiles past the end, which are zero."""
    return _band(q, k, shift, width, k.shape[2], halo_of(width))


def _band(q: Tensor, k: Tensor, shift: int, width: int, owned: int, extra: int) -> Band:
    batch, heads, queries, _ = q.shape
    tiles = -(-owned // ROWS)
    return Band(shift, width, queries, k.shape[2], heads, tiles, extra, batch * heads * tiles)


def rows(x: Tensor | None) -> Rows:
    """One value a query, as kernels take it."""
    return Rows(None, 0, 0) if x is None else Rows(x, x.stride(0), x.stride(1))


def nowhere(x: Tensor) -> Rows:
    """Rows in float32 that a kernel is told not to write, at an address that it may have: that of `x`."""
    return Rows(reinterpret(x, gl.float32), 0, 0)


def words(x: Tensor) -> Rows:
    """Rows of an even number of 16 bits each, as kernels that write two at once take them."""
    return Rows(reinterpret(x, gl.int32), x.stride(0) // 2, x.stride(1) // 2)
