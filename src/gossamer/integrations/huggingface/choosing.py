"""Which models of transformers choose their keys themselves, told by what their code does and by no list of names."""

from __future__ import annotations

import inspect

from torch import nn

CHOICES = ("indices", "block_indices")
"""The keyword arguments that hand a choice to attention."""


def selects(model: nn.Module) -> bool:
    """Whether the model chooses keys itself and hands its choice to attention."""
    return any(hasattr(module, "indexer") and _hands_over(module) for module in model.modules())


def selects_by_mask(model: nn.Module) -> bool:
    """Whether the model chooses keys itself and tells attention by a mask alone, in which each pair has a place."""
    indexers = any(name.rpartition(".")[2] == "indexer" for name, _ in model.named_modules())
    return indexers and not selects(model)


def _hands_over(module: nn.Module) -> bool:
    """Whether its forward passes an argument of such a name on: the name is then a constant of its code."""
    code = inspect.unwrap(type(module).forward).__code__
    constants = (constant if isinstance(constant, tuple) else (constant,) for constant in code.co_consts)
    return any(isinstance(name, str) and name in CHOICES for names in constants for name in names)
