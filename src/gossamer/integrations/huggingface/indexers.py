"""Indexers for a dense model of transformers: its attention then reads the keys that they choose (DSA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ...attention import attend
from ...config import IndexerConfig, tree
from ...indexed import attend_indexed
from ...nn.indexer import LightningIndexer
from ...nn.indexing import Indexing, attends_to_chosen, chosen
from ...patterns import Causal
from .attention import flat
from .forward import leading_padding, pads_behind
from .index_cache import IndexedLayer, with_index_keys
from .layers import KEY, Unswitchable, argument_names, attentions_of, cache_name, decoder_of, own_window, text_decoder

Model = TypeVar("Model", bound=PreTrainedModel)

NAME = "gossamer_by_indexer"
"""What this attention is called in transformers; must hold none of its own names, which it looks for within."""
FRAME, INDEX = "gossamer_index_frame", "gossamer_index"
"""Keyword arguments that bring positions to each layer, and what its indexer made to its attention."""

_seen: ContextVar[list[Indexing] | None] = ContextVar("seen", default=None)


@dataclass(frozen=True, eq=False)
class Frame:
    """What all layers of one forward share."""

    positions: Tensor
    """[B, N] or [N], of the tokens of this forward."""
    within: Tensor | None
    """Where each sequence lies among all tokens so far; None: all are it."""
    layers: list[IndexedLayer] | None
    """Those of the cache."""
    learns: bool
    """Whether gradients are kept of this forward."""


def add_indexers(model: Model, config: IndexerConfig) -> Model:
    """The model itself, every layer of which has an indexer and attends to the keys that it chooses.

    The model keeps its weights; where no more keys than `config.index_topk` stand before a query it answers as it
    did. Queries, keys and values are its own, positions included; the indexer reads the hidden states that they are
    made of. New indexers are random and must learn: `enter_stage(model, "warm_up")`, then `"sparse"`, with
    `indexing(model)` for their losses. They are saved with the model; `load_indexers` reads them back.

    Works on decoders of transformers that `sparsify` works on, whose layers have no sliding window.

    Raises:
        Unswitchable: The model's attention cannot be switched, or is sparse already; the message says why.
        ValueError: `config` is no IndexerConfig.
    """
    if getattr(getattr(model, "config", None), KEY, None) is not None:
        raise Unswitchable(
            f"{type(model).__name__} is sparse already; make it dense with gossamer.densify(model) first"
        )
    decoder = decoder_of(model)
    attentions = attentions_of(decoder)
    for layer, attention in attentions.items():
        if own_window(attention) is not None:
            raise Unswitchable(f"layer {layer} of {type(model).__name__} has a sliding window, and none may choose")
    for attention in attentions.values():
        like = next(attention.parameters())
        indexer = LightningIndexer(model.config.hidden_size, model.config.hidden_size, config)
        attention.indexer = indexer.to(like.device, like.dtype).train(attention.training)
    _switch(model, decoder, config)
    return model


def remove_indexers(model: Model) -> Model:
    """The model itself without its indexers, with the attention that it had before `add_indexers`.

    Raises:
        ValueError: It has none.
    """
    decoder, saved = text_decoder(model), indexers_in(model.config)
    if saved is None:
        raise ValueError(f"{type(model).__name__} has no indexers; there is nothing to undo")
    for attention in attentions_of(decoder).values():
        del attention.indexer, attention.stage
    for module in (decoder, *attentions_of(decoder).values()):
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook in (_begin, _index):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    model.set_attn_implementation(saved["replaced"])
    delattr(model.config, KEY)
    return model


@contextmanager
def indexing(model: PreTrainedModel) -> Iterator[list[Indexing]]:
    """Within the block, a list that each layer adds to what it looked at: `indexer_loss` and `recall` take it.

    Raises:
        ValueError: The model has no indexers.
    """
    if indexers_in(model.config) is None:
        raise ValueError(f"{type(model).__name__} has no indexers; give it some with add_indexers(model, config)")
    layers: list[Indexing] = []
    token = _seen.set(layers)
    try:
        yield layers
    finally:
        _seen.reset(token)


def indexers_in(config: Any) -> dict[str, Any] | None:
    """What a configuration says of indexers; None where it says nothing."""
    saved = getattr(config, KEY, None)
    return saved if isinstance(saved, dict) and "indexer" in saved else None


def _switch(model: PreTrainedModel, decoder: PreTrainedModel, config: IndexerConfig) -> None:
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    replaced = str(model.config._attn_implementation)
    model.set_attn_implementation(NAME)
    setattr(model.config, KEY, {"indexer": tree.plain(config), "replaced": replaced})
    decoder.register_forward_pre_hook(_begin, with_kwargs=True)
    for attention in attentions_of(decoder).values():
        attention.stage = "sparse"  # type: ignore[bad-argument-type]
        attention.register_forward_pre_hook(_index, with_kwargs=True)


def _begin(decoder: PreTrainedModel, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Before the decoder: its frame, and a cache that holds index keys."""
    names, name = argument_names(decoder), cache_name(decoder)
    inputs = {**dict(zip(names, args, strict=False)), **given}
    tokens = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
    if tokens is None:
        return args, given  # the decoder itself says what is missing
    mask, cache, length = flat(inputs.get("attention_mask")), inputs.get(name), tokens.shape[1]
    if cache is not None or _caches(decoder, inputs, mask):
        cache = with_index_keys(cache, decoder.config.num_hidden_layers)
    past = 0 if cache is None else cache.get_seq_length()
    at = inputs.get("position_ids")
    at = torch.arange(past, past + length, device=tokens.device) if at is None else at
    padding = None if mask is None else leading_padding(mask[:, : past + length], 0 if cache is None else length)
    within = None
    if padding is not None:
        within = torch.tensor([(pad, past + length) for pad in padding], dtype=torch.int32, device=tokens.device)
    layers: Any = None if cache is None else cache.layers
    changed: dict[str, Any] = {FRAME: Frame(at, within, layers, torch.is_grad_enabled())}
    changed |= {"use_cache": False} if cache is None else {name: cache}
    args = tuple(changed.pop(argument, value) for argument, value in zip(names, args, strict=False))
    return args, {**given, **changed}


def _caches(decoder: PreTrainedModel, inputs: dict[str, Any], mask: Tensor | None) -> bool:
    """Whether a forward without a cache makes one: where it is asked for, or might be gone on with."""
    if (asked := inputs.get("use_cache")) is not None:
        return bool(asked)
    return bool(decoder.config.use_cache) and not decoder.training and not (mask is not None and pads_behind(mask))


def _index(attention: Any, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Before a layer's attention: what its indexer makes of the tokens, whose keys join those of the cache."""
    frame = given.get(FRAME)
    if not isinstance(frame, Frame):
        raise RuntimeError(
            f"{type(attention).__name__} was called without its frame: its layers do not hand keyword arguments on to "
            f"attention, so this family is not supported"
        )
    x = given["hidden_states"] if "hidden_states" in given else args[0]
    index = attention.indexer.project(x, None, frame.positions)
    if frame.layers is not None:
        index = index._replace(k=frame.layers[attention.layer_idx].extend(index.k))
    return args, {**given, INDEX: index}


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """(out [B, Q, H, D], no weights) of query [B, H, Q, D], key and value [B, G, K, D], as transformers asks."""
    frame, index = others[FRAME], others[INDEX]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    selection = chosen(module.indexer, index, frame.within) if attends_to_chosen(module, module.stage) else None
    settings: Any = {
        "scale": scale,
        "softcap": others.get("softcap"),
        "sinks": others.get("s_aux"),
        "dropout": dropout,
        "return_lse": True,
    }
    if selection is None:
        out, lse = attend(query, key, value, Causal(), within=frame.within, **settings)
    else:
        out, lse = attend_indexed(query, key, value, selection, **settings)
    if (layers := _seen.get()) is not None:
        if frame.learns and not torch.is_grad_enabled():
            raise RuntimeError(
                "indexing(model) under reentrant activation checkpointing, in which no loss reaches an indexer; switch "
                "it on with use_reentrant=False"
            )
        layers.append(Indexing(selection, index, query.detach(), key.detach(), lse.detach(), scale, frame.within))
    return out.transpose(1, 2).contiguous(), None  # some models take a view of it


def _no_mask(*, attention_mask: Tensor | None = None, **sizes: Any) -> Tensor | None:
    """What the caller knows of padding, as [B, 1, 1, K] bools: who sees whom is what the indexers choose."""
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()
