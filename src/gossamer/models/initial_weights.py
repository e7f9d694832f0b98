"""The weights that a GPT-2, or what a trained one lacks, begins with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from ..config import GPT2Config, IndexerConfig
from ..nn.indexer import LightningIndexer

INDEXER = "h.{layer}.attn.indexer"
"""Where a layer's indexer stands in a state dict."""


def initialise(name: str, parameter: nn.Parameter, config: GPT2Config) -> None:
    """Draw a parameter as GPT-2's is; what norms multiply with keeps its ones."""
    if name.endswith(".bias"):
        nn.init.zeros_(parameter)
    elif parameter.dim() == 2:
        nn.init.normal_(parameter, std=_deviation(name, config))


def with_indexers(
    config: GPT2Config, state: Mapping[str, Tensor], indexer: IndexerConfig
) -> tuple[GPT2Config, dict[str, Tensor]]:
    """A model whose layers have indexers: those of `state`, or new ones drawn from torch's generator.

    Raises:
        ValueError: The model is sparse by a pattern, or the indexers of `state` have other sizes.
    """
    config, new = replace(config, indexer=indexer), {}
    for layer in range(config.n_layer):
        fresh = LightningIndexer(config.n_embed, config.n_embed, indexer)
        for name, parameter in fresh.named_parameters(INDEXER.format(layer=layer)):
            initialise(name, parameter, config)
            new[name] = parameter.detach()
    for name, tensor in new.items():
        if name in state and state[name].shape != tensor.shape:
            raise ValueError(
                f"the model has an indexer whose {name} is {list(state[name].shape)}, and with {indexer} it would be "
                f"{list(tensor.shape)}; give its own index_n_heads and index_head_dim"
            )
    return config, {**new, **state}


def _deviation(name: str, config: GPT2Config) -> float:
    """GPT-2's spread of initial weights: less for positions, and for what adds to the residual stream."""
    if name == "wpe.weight":
        return 0.01
    return 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02
