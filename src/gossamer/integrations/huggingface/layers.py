"""What a transformers decoder is, as far as attention goes, and the pattern that each of its layers follows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...models.config_file import SPARSE
from ...patterns import Causal, Pattern, Window, parse
from .choosing import selects, selects_by_mask

KEY = SPARSE
"""Where a model's configuration says its patterns, as plain values that are saved with it."""

OLD_CACHE, NEW_CACHE = "past_key_values", "cache"

FULL, SLIDING = "full_attention", "sliding_attention"

Patterns = Pattern | Mapping[int, Pattern] | Callable[[int], Pattern]
"""One pattern for every layer, one for each (others stay as dense as they are), or a function from a layer's number."""


class Unswitchable(ValueError):
    """The model's attention cannot be switched; the message says why."""


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of the model whose forward hands masks and caches to the layers.

    Raises:
        Unswitchable: There is none, or its layers do not call attention in the way that can be switched.
    """
    if not isinstance(model, PreTrainedModel):
        raise Unswitchable(
            f"model is a {type(model).__name__}; give a model of transformers, such as AutoModelForCausalLM"
        )
    name, config = type(model).__name__, model.config
    decoder = text_decoder(model)
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise Unswitchable(
            f"{name} attends to an encoder as well; only decoders that attend to themselves are switched"
        )
    require_text_alone(model)
    if selects(model):
        raise Unswitchable(f"{name} chooses its keys itself, and a pattern would be lost on it: sparsify(model)")
    if selects_by_mask(model):
        raise Unswitchable(f"{name} chooses its keys itself and says them in its mask, which no pattern can replace")
    if not model._supports_attention_backend:
        raise Unswitchable(f"{name} does not call attention through transformers' AttentionInterface")
    _require_known_layers(name, config)
    without = set(range(config.num_hidden_layers)) - attentions_of(decoder).keys()
    if without:
        raise Unswitchable(f"{name} has no causal self-attention with a layer_idx in layer {min(without)}")
    return decoder


def require_text_alone(model: PreTrainedModel) -> None:
    """Returns where the model is a language model and nothing more.

    Raises:
        Unswitchable: It has other parts.
    """
    if model.config.get_text_config() is not model.config:
        raise Unswitchable(
            f"{type(model).__name__} has parts that are no text; switch its language model: "
            f"sparsify(model.language_model)"
        )


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The module that a forward of the model calls with the tokens; in some families it is not the base model."""
    named: Any = model.get_decoder()  # which in some other families is a head that is called so
    base: Any = model.base_model
    return named if isinstance(named, PreTrainedModel) else base


def argument_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What the model's forward calls its arguments, in their order."""
    return tuple(inspect.signature(type(model).forward).parameters)[1:]


def cache_name(model: PreTrainedModel) -> str:
    """What the forward calls its cache: transformers renamed it in 5.24."""
    return NEW_CACHE if NEW_CACHE in argument_names(model) else OLD_CACHE


def attentions_of(decoder: nn.Module) -> dict[int, nn.Module]:
    """The attention module of each layer that has one, by the layer's number."""
    found = {}
    for module in decoder.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and getattr(module, "is_causal", False) and "Attention" in type(module).__name__:
            found[layer] = module
    return found


def _require_known_layers(name: str, config: PretrainedConfig) -> None:
    others = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
    if others:
        raise Unswitchable(
            f"{name} has layers of the type {', '.join(sorted(others))}; only {FULL} and {SLIDING} can be switched"
        )
    if getattr(config, "num_kv_shared_layers", None):
        raise Unswitchable(
            f"{name} has layers that read the keys of others (num_kv_shared_layers); they are not switched"
        )
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        raise Unswitchable(f"{name} is configured to see the future; only causal decoders are switched")


def own_window(module: Any) -> int | None:
    """Keys that the layer sees at most in the dense model, the query itself included; None where it sees all."""
    owner = module if hasattr(module, "sliding_window") else module.config
    return getattr(owner, "sliding_window", None) or None  # some configurations say 0 for none


def texts(decoder: PreTrainedModel, patterns: Patterns) -> list[str]:
    """The pattern of each layer as text, found to suit the layer.

    Raises:
        ValueError: A pattern is none, is for another number of heads, or is given for a layer that there is not.
    """
    layers, count = attentions_of(decoder), decoder.config.num_hidden_layers
    if isinstance(patterns, Mapping):
        unknown = [layer for layer in patterns if layer not in layers]
        if unknown:
            raise ValueError(f"pattern is given for layer {unknown[0]!r}; the model has layers 0 to {count - 1}")
        given = [patterns.get(layer, Causal()) for layer in range(count)]
    elif isinstance(patterns, Pattern):
        given = [patterns] * count
    elif callable(patterns):
        given = [patterns(layer) for layer in range(count)]
    else:
        raise ValueError(
            f"pattern is {patterns!r}; give one such as Window(1024) | Sinks(4), a dictionary {{layer: pattern}}, "
            f"or a function from a layer's number to its pattern"
        )
    for layer, pattern in enumerate(given):
        if not isinstance(pattern, Pattern):
            raise ValueError(f"pattern of layer {layer} is {pattern!r}; give a pattern such as Window(1024) | Sinks(4)")
        list(pattern.groups(decoder.config.num_attention_heads))
    return [pattern.spec for pattern in given]


def pattern_of(module: Any, layer: int) -> Pattern:
    """What the layer's queries see: the configured pattern within the past, and within the layer's own window."""
    return _within(module.config.sparse_attention["patterns"][layer], own_window(module))


@lru_cache(maxsize=256)
def _within(text: str, window: int | None) -> Pattern:
    pattern: Any = Causal() & parse(text)
    return pattern if window is None else pattern & Window(window)
