"""The portable GPU backends: one for long rows of queries, one for decoding."""

from .backend import TRITON
from .decoding import DECODE

__all__ = ["DECODE", "TRITON"]
