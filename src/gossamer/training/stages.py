"""The stages in which a model learns to choose its keys: what is attended to, and which weights learn."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..nn.indexer import LightningIndexer
from .config import Stage


def enter_stage(model: nn.Module, stage: Stage | None) -> None:
    """Make the layers attend as the stage says, and only those weights learn that learn in it.

    dense: attention to all keys, and the indexers rest. warm_up: attention to all keys, and the indexers alone learn.
    sparse: attention to the chosen keys, and all learn. None, of a model without indexers, changes nothing.

    DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556), section 2.1.1.
    """
    if stage is None:
        return
    for module in model.modules():
        if isinstance(getattr(module, "indexer", None), LightningIndexer):
            module.stage = "sparse" if stage == "sparse" else "warm_up"  # type: ignore[bad-argument-type]
    indexers = set(indexer_parameters(model))
    for parameter in model.parameters():
        parameter.requires_grad_(stage == "sparse" or (parameter in indexers) == (stage == "warm_up"))


def indexer_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that learn from the indexers' losses; all others learn from the model's."""
    for indexer in indexers_of(model):
        yield from indexer.parameters()


def indexers_of(model: nn.Module) -> list[LightningIndexer]:
    """The indexers of a model, from the bottom layer to the top."""
    return [module for module in model.modules() if isinstance(module, LightningIndexer)]
