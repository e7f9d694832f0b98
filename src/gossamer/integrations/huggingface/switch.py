"""`sparsify`: a dense model of transformers made sparse in one line, and back."""

from __future__ import annotations

from typing import TypeVar

from transformers import PreTrainedModel

from ...patterns import parse
from .attention import NAME, register
from .forward import Before, hooks
from .indexers import NAME as BY_INDEXER
from .indexers import indexers_in, remove_indexers
from .layers import (
    KEY,
    Patterns,
    Unswitchable,
    argument_names,
    attentions_of,
    decoder_of,
    pattern_of,
    text_decoder,
    texts,
)
from .native import NAME as OWN_CHOICE
from .native import forget_choice, is_own_choice, keep_to_choice

Model = TypeVar("Model", bound=PreTrainedModel)


def sparsify(model: Model, pattern: Patterns | None = None, *, evict: bool = True) -> Model:
    """The model itself, whose layers from now on see what `pattern` allows of what they saw before.

    Works on decoders of transformers 5.4 or newer that call attention through its AttentionInterface: training,
    generation, padding, packing and gradient checkpointing go on as before. Every layer stays causal, and one that
    has a sliding window of its own stays within it. The patterns are written to `model.config.sparse_attention`
    and saved with the model; `resparsify` reads them after loading.

    Args:
        pattern: One pattern for all layers, a dictionary {layer: pattern} (layers left out stay dense), or a
            function from a layer's number to its pattern. None for a model that chooses its keys itself, such as
            DeepSeek-V3.2 or MiniMax-M3: its attention then computes the chosen pairs and no others.
        evict: Let caches drop the keys that no later query reads. An empty `DynamicCache`, which is what `generate`
            begins with, is taken over; a static cache keeps every key.

    Raises:
        Unswitchable: The model's attention cannot be switched; the message says why.
        ValueError: A pattern is none, or does not suit the layer that it is for.
    """
    if pattern is None:
        return keep_to_choice(model)
    if indexers_in(getattr(model, "config", None)) is not None:
        raise Unswitchable(f"{type(model).__name__} has indexers; take them away with densify(model) first")
    decoder = decoder_of(model)
    written = texts(decoder, pattern)
    return _switch(model, decoder, written, evict)


def resparsify(model: Model, *, evict: bool = True) -> Model:
    """The model itself, made sparse as its configuration says: for one that was saved sparse and loaded again.

    Raises:
        ValueError: The configuration says nothing of patterns, or something that is none.
    """
    saved = getattr(model.config, KEY, None)
    if is_own_choice(saved):
        return keep_to_choice(model)
    if indexers_in(model.config) is not None:
        raise ValueError(
            f"model.config.{KEY} says that indexers choose, whose weights transformers leaves in the file; read them "
            f"with load_indexers(model, folder)"
        )
    decoder, count = decoder_of(model), model.config.num_hidden_layers
    if not isinstance(saved, dict) or not isinstance(saved.get("patterns"), list):
        raise ValueError(
            f"model.config.{KEY} is {saved!r}, not the patterns of a sparse model; "
            f"choose some with gossamer.sparsify(model, pattern)"
        )
    if len(saved["patterns"]) != count:
        raise ValueError(
            f"model.config.{KEY} has patterns for {len(saved['patterns'])} layers, but the model has {count}"
        )
    patterns = [parse(text) for text in saved["patterns"]]
    return _switch(model, decoder, texts(decoder, patterns.__getitem__), evict)


def densify(model: Model) -> Model:
    """The model itself, with the attention that it had before `sparsify` or `add_indexers`, and no trace of it.

    Raises:
        ValueError: The model was not made sparse.
    """
    if is_own_choice(getattr(model.config, KEY, None)):
        return forget_choice(model)
    if indexers_in(model.config) is not None:
        return remove_indexers(model)
    decoder = decoder_of(model)
    found = hooks(decoder)
    if not found:
        raise ValueError(f"{type(model).__name__} was not made sparse; there is nothing to undo")
    before = next(iter(found.values())).replaced
    _unhook(decoder)
    model.set_attn_implementation(before)
    delattr(model.config, KEY)
    return model


def is_sparse(model: PreTrainedModel) -> bool:
    """Whether the model's attention is Gossamer's now."""
    attention = model.config._attn_implementation
    return attention in (OWN_CHOICE, BY_INDEXER) or (attention == NAME and bool(hooks(text_decoder(model))))


def _switch(model: Model, decoder: PreTrainedModel, written: list[str], evict: bool) -> Model:
    register()
    found = hooks(decoder)
    replaced = next(iter(found.values())).replaced if found else str(model.config._attn_implementation)
    model.set_attn_implementation(NAME)
    setattr(model.config, KEY, {"patterns": written})
    _unhook(decoder)
    patterns = {layer: pattern_of(module, layer) for layer, module in sorted(attentions_of(decoder).items())}
    before = Before(evict, replaced, patterns, argument_names(decoder))
    decoder.register_forward_pre_hook(before, with_kwargs=True)
    return model


def _unhook(decoder: PreTrainedModel) -> None:
    for key in hooks(decoder):
        del decoder._forward_pre_hooks[key]
        decoder._forward_pre_hooks_with_kwargs.pop(key, None)
