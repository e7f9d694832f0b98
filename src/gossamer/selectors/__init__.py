"""Patterns that look at content: who meets whom is found on the device, anew at every call."""

from .block_topk import BlockTopK
from .lsh import LSH
from .moba import moba_selection
from .nsa import NSA
from .peaks import MSA, highest_score_selection, highest_share_selection
from .rounds import Chunks, SortedRounds, sorted_rounds

__all__ = [
    "LSH",
    "MSA",
    "NSA",
    "BlockTopK",
    "Chunks",
    "SortedRounds",
    "highest_score_selection",
    "highest_share_selection",
    "moba_selection",
    "sorted_rounds",
]
