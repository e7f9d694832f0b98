"""The portable backend."""

from .attention import TILED

__all__ = ["TILED"]
