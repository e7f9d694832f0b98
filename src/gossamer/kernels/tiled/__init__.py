"""The portable backend."""

from .backend import TILED

__all__ = ["TILED"]
