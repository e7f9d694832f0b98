"""Patterns that look at content: who meets whom is found on the device, anew at every call."""

from .lsh import LSH
from .rounds import Chunks, SortedRounds, sorted_rounds

__all__ = ["LSH", "Chunks", "SortedRounds", "sorted_rounds"]
