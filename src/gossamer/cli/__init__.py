"""The library's own values as commands: `gossamer train | generate | convert | serve | bench | show | doctor`."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
