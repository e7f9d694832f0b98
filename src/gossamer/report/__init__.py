"""What people look at: one self-contained HTML page of curves, masks and attention maps."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
