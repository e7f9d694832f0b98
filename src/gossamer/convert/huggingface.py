"""A decoder of transformers, listened to through its attention interface."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..integrations.huggingface.layers import decoder_of
from ..models.config_file import FILE
from .checkpoint import Layer, Listener, layer_of
from .mass import attend_densely

NAME = "gossamer_measure"
FOREIGN = ("indices", "block_indices", "position_bias")
"""Settings of attention that choose or weigh pairs in a way which is not followed here."""

WORD = "a"  # of every vocabulary
REFERENCE = "eager"  # each model's own formula; others may leave out what they do not know, such as a soft cap
COMPARED_TOKENS = 2048  # the reference makes an n×n matrix

_listener: ContextVar[Listener] = ContextVar("listener")  # transformers calls attention by name and passes nothing on


class TransformersModel:
    """A dense decoder as `save_pretrained` writes it; see `DenseModel`."""

    def __init__(self, folder: Path, tokenizer: Path, config: dict[str, Any], device: torch.device | str):
        self.folder, self.config = folder, config
        self._tokenizer = _tokenizer(tokenizer)
        self._model = _decoder(folder).to(torch.device(device))  # type: ignore[bad-argument-type]
        self._decoder = decoder_of(self._model)
        self.vocabulary: int = self._model.config.vocab_size
        self.positions: int | None = getattr(self._model.config, "max_position_embeddings", None)
        self.opening = _opening(self._tokenizer)
        self.files = {name: path for place in (folder, tokenizer) for name, path in _files(place) if name != FILE}

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` without the opening."""
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def read(self, tokens: Int64[Tensor, "1 N"], listen: Listener) -> None:
        """Runs the model and calls `listen` with each layer's attention."""
        self._listened(tokens, listen)

    def survey(self, tokens: Int64[Tensor, "1 N"]) -> tuple[Layer, ...]:
        """Its layers, after a comparison of its features with those of transformers' reference attention."""
        tokens = tokens[:, :COMPARED_TOKENS]
        layers: list[Layer] = []
        given = self._listened(tokens, lambda seen: layers.append(layer_of(seen)))
        self._require_every_layer(layers)
        own = self._features(tokens, REFERENCE)
        if not own.isfinite().all():
            raise ValueError(
                f"{self.folder}: {type(self._model).__name__} gives no finite numbers; its weights are damaged, or "
                f"overflow in {self._model.dtype}: convert them to float32 first"
            )
        error = float((given - own).norm() / own.norm().clamp(min=torch.finfo(own.dtype).tiny))
        if not error <= math.sqrt(torch.finfo(self._model.dtype).eps):  # half of the digits
            raise ValueError(
                f"{self.folder}: with causal softmax attention {type(self._model).__name__} answers otherwise than by "
                f"itself (relative difference {error:.2g}): its attention is of another kind; give another model"
            )
        return tuple(layers)

    def _listened(self, tokens: Tensor, listen: Listener) -> Tensor:
        """The model's features, every layer's attention having been told to `listen`."""
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _no_mask)
        token = _listener.set(listen)
        try:
            return self._features(tokens, NAME)
        finally:
            _listener.reset(token)

    @torch.no_grad()
    def _features(self, tokens: Tensor, attention: str) -> Tensor:
        """[1, N, E], what the output head reads; logits of a whole context would take more memory than all else."""
        self._model.set_attn_implementation(attention)
        read = self._decoder(input_ids=tokens.to(self._model.device), use_cache=False)
        return read.last_hidden_state.float()

    def _require_every_layer(self, layers: Sequence[Layer]) -> None:
        expected, heads = self._model.config.num_hidden_layers, {layer.heads for layer in layers}
        if len(layers) != expected or len(heads) != 1:
            raise ValueError(
                f"{self.folder}: of the {expected} layers of {type(self._model).__name__}, {len(layers)} were heard, "
                f"with {sorted(heads)} heads; give a decoder whose layers all use transformers' AttentionInterface, "
                "with as many heads each"
            )


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """The layer's own attention, under the call of transformers' AttentionInterface."""
    foreign = [name for name in FOREIGN if settings.get(name) is not None]
    if foreign:
        raise ValueError(
            f"{type(module).__name__} attends by {', '.join(foreign)}; give a model whose attention is dense"
        )
    out, seen = attend_densely(
        query,
        key,
        value,
        scale=settings.get("scaling"),
        window=settings.get("sliding_window"),
        softcap=settings.get("softcap"),
        sinks=settings.get("s_aux"),
    )
    _listener.get()(seen)
    return out.transpose(1, 2).contiguous(), None  # [B, N, H, D]


def _no_mask(**lengths: Any) -> None:
    """Whole sequences without padding: the layer's pattern says all."""


def _decoder(folder: Path) -> PreTrainedModel:
    try:
        # A pickle can run code, so weights are read from safetensors alone.
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto", use_safetensors=True)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise ValueError(f"{folder} holds no decoder that transformers can load: {error}") from error
    return model.eval()


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError, ImportError, TypeError) as error:
        raise ValueError(f"{folder} holds no tokenizer that transformers can load: {error}") from error
    if tokenizer is None or not tokenizer(WORD, add_special_tokens=False)["input_ids"]:  # made up from no file
        raise ValueError(f"{folder} holds no tokenizer that transformers can load; put tokenizer.json there")
    return tokenizer


def _opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens, such as the beginning of a text, that the tokenizer puts before every text."""
    bare = tokenizer(WORD, add_special_tokens=False)["input_ids"]
    whole = tokenizer(WORD)["input_ids"]
    places = range(len(whole) - len(bare) + 1)
    return tuple(whole[: next(place for place in places if whole[place : place + len(bare)] == bare)])


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path
