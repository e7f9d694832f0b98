"""The dropout mask as a pure function of (seed, batch, head, query, key), so that a backward pass, another tile
size or another backend recomputes the very same mask."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def keep_factor(probability: float, seed: int, streams: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """1 / (1 - probability) where a pair is kept and 0 where it is dropped, float32 [streams, Q, K].

    `streams` [S] numbers each (batch, head) as `batch · heads + head`; `q` [Q] and `k` [K] are positions.
    """
    return keep_pairs(probability, seed, streams[:, None, None], q[:, None], k)


def keep_pairs(probability: float, seed: int | Tensor, streams: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The same of pairs that are told one by one: `streams`, `q` and `k` broadcast to the shape of the result."""
    state = _mixed(streams.long() * 0x9E3779B1 ^ (seed & WORD))
    state = _mixed(state ^ (seed >> 32 & WORD))
    state = _mixed(state + q.long() * 0x85EBCA77)
    bits = _mixed(state + k.long() * 0xC2B2AE3D)
    threshold = int(probability * 2.0**32)
    return (bits >= threshold).to(torch.float32).mul_(1.0 / (1.0 - probability))


def _mixed(bits: Tensor) -> Tensor:
    """32 well-mixed bits of each number's lower 32 (the finaliser of MurmurHash3)."""
    bits = bits & WORD
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & WORD
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & WORD
    return bits ^ (bits >> 16)
