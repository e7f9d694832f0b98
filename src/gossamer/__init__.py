"""Sparse attention for transformers: say who may see whom, then train, serve and look at it."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
