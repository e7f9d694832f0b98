"""From text to a trained model: data, schedule, loop and checkpoints."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
