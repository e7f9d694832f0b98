"""One random model of transformers, and twins of it that share its weights but compute attention in other ways."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.cache_utils import Cache

from gossamer import Causal, Pattern, Sinks, Window
from gossamer.bench import BenchConfig
from gossamer.bench.setting import Setting
from gossamer.integrations.huggingface import sparsify

from .flex import BY_BLOCKS, register

MAX_POSITIONS = 262144
WINDOW_PER_SINK = 16
"""So many keys of the window for each sink: 1,024 and 64."""
SHARPNESS = 1.5
"""Queries are so many times as large as drawn: with less, nobody would miss a key that is not seen; with more, rounding
grows too much on its way through the layers."""

CacheBytes = dict[tuple[str, int], int]
"""Memory of keys and values by contender and length."""


def sinks(config: BenchConfig) -> int:
    """How many first tokens everybody sees."""
    return config.window // WINDOW_PER_SINK


def pattern_of(config: BenchConfig) -> Pattern:
    """What a token sees: its window, and the first tokens."""
    return Causal() & (Window(config.window) | Sinks(sinks(config)))


class Family:
    """A Llama with random weights on the device, and its twins; each is made when it is first asked for."""

    def __init__(self, setting: Setting, made: dict[str, PreTrainedModel] | None = None):
        self.setting = setting
        self._made: dict[str, PreTrainedModel] = {} if made is None else made

    def at(self, setting: Setting) -> Family:
        """The same models for another setting of the same shape."""
        return Family(setting, self._made)

    @property
    def model(self) -> PreTrainedModel:
        """The model itself; its attention is the plain formula."""
        return self._once("model", self._drawn)

    @property
    def exact(self) -> PreTrainedModel:
        """The same weights in float32, by the plain formula."""
        return self._once("exact", lambda: deepcopy(self.model).float())

    @property
    def sparse(self) -> PreTrainedModel:
        """The twin that was made sparse in one line."""
        c = self.setting.config
        return self._once("sparse", lambda: sparsify(self._twin(), Window(c.window) | Sinks(sinks(c))))

    @property
    def compiled(self) -> PreTrainedModel:
        """The same with each layer compiled, all by one graph; a CPU only sees that there are graphs."""

        def made() -> PreTrainedModel:
            c = self.setting.config
            twin = sparsify(self._twin(), Window(c.window) | Sinks(sinks(c)))
            for layer in twin.model.layers:
                layer.compile(backend="inductor" if self.setting.device.type == "cuda" else "eager", dynamic=False)
            return twin

        return self._once("compiled", made)

    def twin(self, implementation: str) -> PreTrainedModel:
        """The twin whose attention has this name in transformers."""

        def switched() -> PreTrainedModel:
            twin = self._twin()
            twin.set_attn_implementation(implementation)
            return twin

        if implementation == BY_BLOCKS:
            register(self.setting.config.window, sinks(self.setting.config))
        return self._once(f"twin: {implementation}", switched)

    def _once(self, name: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _twin(self) -> PreTrainedModel:
        return deepcopy(self.model, {id(parameter): parameter for parameter in self.model.parameters()})

    def _drawn(self) -> PreTrainedModel:
        c = self.setting.config
        width = c.heads * c.head_width
        shape = LlamaConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=c.model.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=self.setting.key_heads,
            vocab_size=c.model.vocabulary,
            max_position_embeddings=MAX_POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            initializer_range=width**-0.5,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=None,
        )
        torch.manual_seed(c.seed)
        with torch.device(self.setting.device), torch.no_grad():
            model = AutoModelForCausalLM.from_config(shape, dtype=self.setting.dtype, attn_implementation="eager")
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.mul_(SHARPNESS)
        return model.eval().requires_grad_(False)


def text(setting: Setting, length: int) -> Tensor:
    """Random tokens [B, length], the same ones whoever asks."""
    generator = torch.Generator(setting.device).manual_seed(setting.config.seed)
    shape, vocabulary = (setting.config.batch, length), setting.config.model.vocabulary
    return torch.randint(vocabulary, shape, generator=generator, device=setting.device)


def cache_bytes(cache: Cache) -> int:
    """Memory of all keys and values that the cache holds."""
    layers: list[Any] = cache.layers
    return sum(
        layer.nbytes if hasattr(layer, "nbytes") else layer.keys.nbytes + layer.values.nbytes for layer in layers
    )
