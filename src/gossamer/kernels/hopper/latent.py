"""Attention over chosen latents: 576 columns wide, of which 512 are the value (multi-head latent
attention, DeepSeek-V2, arXiv 2405.04434; chosen as in DeepSeek-V3.2, arXiv 2512.02556).

Rows of 64 fill a matrix instruction: the heads of one query, or of several neighbouring ones that read the union of
what they chose. Gradients of the latents are written out for each chosen pair, some groups of queries at a time, and
then summed in one order: no atomics, and the same bits at every call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import made_current, multiprocessors
from ..indexed import Inputs, Returning
from ..layout import empty_beside, empty_by_token
from .descriptors import addressable
from .latent_backward_keys import latent_backward_keys
from .latent_backward_queries import latent_backward_queries
from .latent_delta import delta_of
from .latent_forward import latent_forward
from .latent_lists import GroupLists, group_lists
from .latent_ring import HALF, ROTARY, TILE, Packing
from .latent_sum import add_owed, in_order, owed_to

VALUE, WIDTH = 2 * HALF.value, 2 * HALF.value + ROTARY.value

SCRATCH = 4 << 30
"""Bytes of gradients that are written out before they are summed, if one group of queries has not more."""


def forward(given: Inputs) -> tuple[Tensor, Tensor]:
    """(out, natural log-sum-exp), as `Road` says."""
    q, k = given.q, given.k
    batch, heads, queries, _ = q.shape
    out = empty_by_token(q, VALUE)
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    if not lse.numel():
        return out, lse
    packing = Packing.of(heads)
    with made_current(q.device):
        lists, blind = group_lists(given.selection, k.shape[2], packing.queries)
        inputs = _seeing(addressable(q), blind), _rows(k)
        sinks = None if given.sinks is None else given.sinks.contiguous()
        latent_forward(*inputs, lists, out, lse, sinks, scale=given.softmax.scale, packing=packing)
    return out, lse


def backward(given: Inputs, come: Returning) -> tuple[Tensor, Tensor]:
    """Gradients of q and k."""
    q, k = given.q, given.k
    dq = empty_beside(q, WIDTH)
    if not come.lse.numel():
        return dq, torch.zeros_like(k)
    packing = Packing.of(q.shape[1])
    with made_current(q.device):
        lists, blind = group_lists(given.selection, k.shape[2], packing.queries)
        latents, grad_out = _rows(k), _seeing(addressable(come.grad_out), blind)
        grad_lse = None if come.grad_lse is None else come.grad_lse.contiguous()
        delta = delta_of(come.out, grad_out, grad_lse)
        inputs = _seeing(addressable(q), blind), grad_out, latents, come.lse.contiguous(), delta
        totals = _gradients(inputs, lists, dq, given.softmax.scale, packing)
    return dq, in_order(totals, k.dtype)[:, None]


def _gradients(inputs: tuple[Tensor, ...], lists: GroupLists, dq: Tensor, scale: float, packing: Packing) -> Tensor:
    """Writes dq, and returns what is due to all latents [B, K, 576] in float32, columns as threads hold them."""
    q, latents = inputs[0], inputs[2]
    groups, places = lists.counts.numel(), lists.entries.shape[2]
    parts = -(-q.shape[1] // packing.heads)
    tiled = -(-places // TILE.value) * TILE.value
    step = _groups_at_a_time(groups, parts, parts * (places * WIDTH + tiled * TILE.value) * q.element_size(), q.device)
    scratch, scores = q.new_empty(step * parts, places, WIDTH), q.new_empty(step * parts, tiled, TILE.value)
    totals = latents.new_zeros(latents.shape, dtype=torch.float32)
    for first in range(0, groups, step):
        chunk = first, min(step, groups - first)
        latent_backward_keys(inputs, lists, scratch, scores, scale=scale, packing=packing, chunk=chunk)
        latent_backward_queries(scores, latents, lists, dq, packing=packing, chunk=chunk)
        add_owed(scratch, owed_to(lists, latents.shape[1], chunk), totals, parts=parts, places=places)
    return totals


def _groups_at_a_time(groups: int, parts: int, nbytes: int, device: torch.device) -> int:
    """As many as the scratch holds, so that all multiprocessors have as many items if they are not all there are."""
    programs = multiprocessors(device)
    most = max(1, SCRATCH // nbytes)
    return min(groups, most // programs * programs or most)


def _seeing(x: Tensor, blind: Tensor | None) -> Tensor:
    """x [B, H, Q, D], zeros where a query sees nothing and shares a tile with others that do: whatever stands there
    would be multiplied with zeros."""
    return x if blind is None else x.masked_fill(blind[:, None, :, None], 0.0)


def _rows(k: Tensor) -> Tensor:
    """Latents [B, K, 576], each dense and at a multiple of 16 bytes."""
    return addressable(k)[:, 0]
