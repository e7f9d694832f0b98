"""The weights that a run begins with, where they are those of another one."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..config import GPT2Config
from ..models.gpt2 import GPT2

SHAPE = ("vocab_size", "known_tokens", "n_layer", "n_head", "n_embed", "bias", "layer_norm_epsilon", "positions")


def weights_from(source: str | Path, config: GPT2Config) -> dict[str, Tensor]:
    """The weights of the model in `source` for one of the shape `config`: its context may be another one.

    Indexers that the model in `source` lacks are drawn from torch's generator.

    Raises:
        FileNotFoundError: There is no model in `source`.
        ValueError: Its shape is another one, or it is damaged.
    """
    model = GPT2.load(source, context_size=config.context_size, indexer=config.indexer)
    for name in SHAPE:
        stored, wanted = getattr(model.config, name), getattr(config, name)
        if stored != wanted:
            advice = "train with its tokenizer" if name == "known_tokens" else f"give model.{name}={stored!r}"
            raise ValueError(f"run.start_from {source} has {name}={stored!r}, and this run {wanted!r}; {advice}")
    return model.state_dict()
