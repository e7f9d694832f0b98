"""One more token of each sequence: the model's forward, as a CUDA graph where it can be one."""

from __future__ import annotations

import logging
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ...nn.kept_keys import Clocks
from .layers import cache_name

EAGER_STEPS = 3
"""Steps that run before a graph is made of one: they make the tables and pick the kernels that it launches."""


logger = logging.getLogger(__name__)


class DecodeStep:
    """The logits after one more token of each sequence, which stand behind those that an evicting cache has seen.

    Where the patterns are bounded, each layer's memory stops growing and every step launches what the last one did:
    on a GPU it is then recorded once and replayed, and costs the host one launch. Elsewhere, and at the few steps at
    which a layer moves a key to its archive, the model runs as it is. The logits are the same.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, padding: Int64[Tensor, " B"]):
        """`padding`: how many of each sequence's first tokens were padding: positions count without them."""
        self.model, self.cache = model, {cache_name(model): cache}
        self.layers: list[Any] = cache.layers
        self.tokens = torch.zeros(len(padding), 1, dtype=torch.int64, device=padding.device)
        self.positions = (cache.get_seq_length() - padding)[:, None]
        self.clocks: Clocks | None = None
        self.recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
        self.alike = 0
        """Steps in a row that could repeat."""
        self.refusal = _no_graph(model)
        """Why a step of the model cannot be recorded, as far as is known."""
        if self.refusal is not None:
            logger.info("steps of %s run as they are: %s", type(model).__name__, self.refusal)

    def __call__(self, tokens: Int64[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """The logits [B, V] after these tokens; a replay overwrites those of the one before."""
        self.tokens.copy_(tokens[:, None])
        if self.refusal is not None or not all(layer.held.repeats() for layer in self.layers):
            self._forget()
            return self._forward()
        if self.alike == 0:
            self._follow(Clocks())
        self.alike += 1
        if self.alike <= EAGER_STEPS:
            return self._forward()
        if self.recorded is None:
            self.recorded = self._record()
            if self.recorded is None:
                self._forget()
                return self._forward()
        else:
            for layer in self.layers:
                layer.held.repeated()
        graph, logits = self.recorded
        graph.replay()
        return logits

    def _forward(self) -> Tensor:
        out = self.model(
            input_ids=self.tokens, position_ids=self.positions, use_cache=True, **self.cache
        )  # fmt: skip
        self.positions.add_(1)
        if self.clocks is not None:
            self.clocks.advance()
        return out.logits[:, -1]

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
        """A step that nothing of has run yet; but the host has counted the token that its first replay takes. None
        where the model does what no graph can, such as asking the device for a number."""
        torch.cuda.synchronize(self.tokens.device)
        graph, counts = torch.cuda.CUDAGraph(), [layer.held.counts() for layer in self.layers]
        try:
            with torch.cuda.device(self.tokens.device), torch.cuda.graph(graph):
                logits = self._forward()
        except RuntimeError as error:
            for layer, counted in zip(self.layers, counts, strict=True):
                layer.held.count_back(counted)
            self.refusal = str(error).partition("\n")[0]
            name = type(self.model).__name__
            logger.warning("a step of %s cannot be a CUDA graph, and runs as it is: %s", name, self.refusal)
            return None
        return graph, logits

    def _forget(self) -> None:
        if self.alike:
            self._follow(None)
        self.recorded, self.alike = None, 0

    def _follow(self, clocks: Clocks | None) -> None:
        self.clocks = clocks
        for layer in self.layers:
            layer.held.follow(clocks)


def _no_graph(model: PreTrainedModel) -> str | None:
    """Why no step of the model can be a CUDA graph, or None where one may."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        return f"the model lies on {len(devices)} devices"
    return None if devices.pop().type == "cuda" else "only CUDA has graphs"
