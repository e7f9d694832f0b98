"""Gossamer's own GPT2, listened to by hooks on its attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ..models.gpt2 import GPT2
from ..models.weights import WEIGHTS
from ..nn.self_attention import SelfAttention
from ..tokenizer import FILE, GPT2_FILES, load_tokenizer
from .checkpoint import Layer, Listener, layer_of
from .mass import attend_densely


class GossamerGPT2:
    """A dense GPT2 as `GPT2.save` writes it; see `DenseModel`."""

    def __init__(self, folder: Path, tokenizer: Path, config: dict[str, Any], device: torch.device | str):
        model = GPT2.load(folder, device=device)
        for name in ("use_sparse_attention", "windows", "indexer"):
            if setting := getattr(model.config, name):
                raise ValueError(f"{folder} is sparse already: its {name} is {setting}; give a dense model")
        self.config = config
        self.vocabulary: int = model.config.known_tokens
        self.positions: int | None = model.config.context_size
        self.opening: tuple[int, ...] = ()
        names = [FILE, *(name for pair in GPT2_FILES for name in pair)]
        self.files = {name: tokenizer / name for name in names if (tokenizer / name).is_file()}
        self.files[WEIGHTS] = folder / WEIGHTS
        self._tokenizer = load_tokenizer(tokenizer)
        self._model = model.eval()

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`."""
        return self._tokenizer.encode(text)

    @torch.no_grad()
    def read(self, tokens: Int64[Tensor, "1 N"], listen: Listener) -> None:
        """Runs the model and calls `listen` with each layer's attention."""

        def hear(module: SelfAttention, inputs: tuple[Tensor, ...]) -> None:
            listen(attend_densely(*module.project(inputs[0]))[1])

        attentions = [module for module in self._model.modules() if isinstance(module, SelfAttention)]
        hooks = [attention.register_forward_pre_hook(hear) for attention in attentions]
        try:
            self._model.features(tokens.to(self._model.wte.weight.device))
        finally:
            for hook in hooks:
                hook.remove()

    def survey(self, tokens: Int64[Tensor, "1 N"]) -> tuple[Layer, ...]:
        """Its layers; the hooks change nothing that the model computes."""
        layers: list[Layer] = []
        self.read(tokens, lambda seen: layers.append(layer_of(seen)))
        return tuple(layers)
