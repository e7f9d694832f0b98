"""Attention that may stand in for one another, each with about as many keys to a query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from gossamer.config import GPT2Config, IndexerConfig, SparseAttentionConfig
from gossamer.nn.dense import CausalSelfAttention
from gossamer.nn.indexed import IndexedAttention
from gossamer.nn.lsh import LSHAttention
from gossamer.nn.moba import MoBAAttention
from gossamer.nn.nsa import NSAAttention
from gossamer.nn.sparse import SparseAttention
from gossamer.nn.windowed import WindowedAttention
from gossamer.selectors import LSH
from gossamer.selectors.nsa import NSA


@dataclass(frozen=True)
class Sight:
    """What everyone has: a width, heads, and about so many keys to a query. Nobody has positions."""

    width: int = 256
    heads: int = 2
    keys: int = 64

    def gpt2(self, **settings: object) -> GPT2Config:
        """The same as the shape of a layer of a GPT-2."""
        return GPT2Config(n_layer=1, n_head=self.heads, n_embed=self.width, **settings)  # type: ignore[bad-argument-type]


def _document(sight: Sight, longest: int) -> nn.Module:
    """The design document's: some heads see a window, the others tokens that are spread over the whole text."""
    spread = max(1, sight.heads // 3)
    config = SparseAttentionConfig(
        local_heads=sight.heads - spread,
        global_heads=spread,
        window_size=sight.keys,
        adaptive_window=False,
        global_token_ratio=min(1.0, sight.keys / longest),
    )
    return SparseAttention(config, sight.width)


def _lsh(sight: Sight, longest: int) -> nn.Module:
    """Two small chunks in each of many rounds: at first no hash says where a key is, and many rounds meet it."""
    return LSHAttention(sight.width, sight.heads, LSH.trax(ROUNDS, max(1, sight.keys // (2 * ROUNDS))))


def _moba(sight: Sight, longest: int) -> nn.Module:
    """The query's own block and those whose mean key it points to."""
    return MoBAAttention(sight.width, sight.heads, block=PAIR, count=max(1, sight.keys // PAIR), rotary=None)


def _nsa(sight: Sight, longest: int) -> nn.Module:
    """A window, compressed keys, as many as a query of the longest text sees on average, and selected blocks.

    What is compressed overlaps as in the paper: of two keys that are always compressed together one is lost.
    """
    window, compressed = sight.keys // BLOCK, longest // BLOCK
    count = max(2, (sight.keys - window - compressed) // BLOCK)
    nsa = NSA(BLOCK, BLOCK // 2, BLOCK, count=count, first=0, local=1, window=max(1, window))
    return NSAAttention(sight.width, sight.heads, sight.heads, nsa, rotary=None)


def _dsa(sight: Sight, longest: int) -> nn.Module:
    """The keys that an indexer of four narrow heads chooses, which learns beside."""
    indexer = IndexerConfig(index_n_heads=4, index_head_dim=32, index_topk=sight.keys, qk_rope_head_dim=0)
    return IndexedAttention(sight.heads, sight.width, indexer)


ROUNDS = 8
"""Of hashing."""
BLOCK = 8
"""Keys that NSA compresses into one, and that it selects together."""
PAIR = 2
"""Keys of a block of MoBA, whose choice is by their mean and is not learned: with more than a pair, the key that is
sought is often not seen in it."""

MIXERS: dict[str, Callable[[Sight, int], nn.Module]] = {
    "dense": lambda sight, longest: CausalSelfAttention(sight.gpt2()),
    "window": lambda sight, longest: WindowedAttention(sight.gpt2(windows=(sight.keys,)), 0),
    "document": _document,
    "lsh": _lsh,
    "moba": _moba,
    "nsa": _nsa,
    "dsa": _dsa,
}
"""By name: a layer, for texts of up to so many tokens in training."""
