"""What is done before each forward of a switched decoder: its cache chosen, its frame made."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticCache

from ...patterns import Pattern
from .attention import FRAME, NAME, flat
from .cache import evicting_cache, evicts, is_dynamic, is_new, keep_all, length_of, take_over
from .frame import Documents, Frame


@dataclass
class Before:
    """The hook before a switched decoder's forward."""

    evict: bool
    """Whether keys that no later query reads are dropped."""
    replaced: str
    """The attention that the model had before."""
    patterns: dict[int, Pattern]
    """What each layer's queries see."""
    warned: bool = field(default=False, init=False)

    def __call__(self, decoder: PreTrainedModel, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if decoder.config._attn_implementation != NAME:
            self._warn(decoder)
            return args, given
        inputs = {**dict(zip(_names(type(decoder)), args, strict=False)), **given}
        mask, cache = flat(inputs.get("attention_mask")), inputs.get("past_key_values")
        tokens = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        documents = _documents(inputs, tokens) if mask is None and _may_be_packed(cache) else None
        if documents is None:
            cache = self._cache(decoder, cache, inputs)
        elif cache is not None:
            raise ValueError("packed sequences have no cache: leave past_key_values out, or give them one by one")
        frame = self._frame(mask, cache, tokens, documents)
        added: dict[str, Any] = {FRAME: frame}
        if cache is not None and "past_key_values" not in dict(zip(_names(type(decoder)), args, strict=False)):
            added["past_key_values"] = cache
        return args, {**given, **added}

    def _cache(self, decoder: PreTrainedModel, cache: Cache | None, inputs: dict[str, Any]) -> Cache | None:
        """The cache that this forward fills, with layers that keep what the patterns read."""
        if cache is None:
            use = inputs.get("use_cache")
            wanted = decoder.config.use_cache if use is None else use
            alone = self.evict and wanted and not decoder.training
            return evicting_cache(list(self.patterns.values())) if alone else None
        if evicts(cache) or not is_new(cache):
            return cache
        if self.evict and is_dynamic(cache):
            take_over(cache, list(self.patterns.values()))
        else:
            keep_all(cache)
        return cache

    def _frame(self, mask: Tensor | None, cache: Cache | None, tokens: Tensor, documents: Documents | None) -> Frame:
        past, new = length_of(cache), tokens.shape[1]
        if cache is not None and evicts(cache):
            if mask is not None and (past == 0 or new > 1):
                padding = _padding(mask[:, : past + new], new) or (0,) * len(tokens)
                layers: list[Any] = cache.layers
                for layer in layers:
                    layer.held.pad(padding)
            return Frame(past + new, self.patterns, cache=cache)
        if mask is None:
            return Frame(past + new, self.patterns, documents=documents)
        if torch.compiler.is_compiling():
            return Frame(past + new, self.patterns, (mask == 0).long().cumprod(1).sum(1))
        goes_on = 0 if cache is None else new
        return Frame(past + new, self.patterns, _padding(mask[:, : past + new], goes_on))

    def _warn(self, decoder: PreTrainedModel) -> None:
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"{type(decoder).__name__} has a sparse configuration but runs dense, by "
                f"{decoder.config._attn_implementation!r}; gossamer.resparsify(model) makes it sparse again, "
                f"gossamer.densify(model) forgets the pattern",
                stacklevel=3,
            )


def hooks(decoder: nn.Module) -> dict[int, Before]:
    """Gossamer's hooks on the decoder by their keys: none, or one."""
    return {key: hook for key, hook in decoder._forward_pre_hooks.items() if isinstance(hook, Before)}


def _names(kind: type[PreTrainedModel]) -> list[str]:
    return list(inspect.signature(kind.forward).parameters)[1:]


def _may_be_packed(cache: Cache | None) -> bool:
    """Static caches are for generation alone."""
    return cache is None or (is_new(cache) and not isinstance(cache, StaticCache))


def _padding(mask: Tensor, new: int) -> tuple[int, ...] | None:
    """Zeros before each sequence; None where there are none.

    Zeros behind a sequence are ignored where nothing follows them: no token before them sees them.

    Raises:
        ValueError: There are zeros within a sequence, or behind one that a cache is to go on with (`new` > 0).
    """
    kept = mask != 0
    if bool(kept.all()):
        return None
    seen = kept.long().cumsum(1)
    before = (seen == 0).sum(1)
    behind = (seen == seen[:, -1:]).sum(1) - 1
    runs = torch.diff(kept.long(), dim=1).eq(1).sum(1) + kept[:, 0].long()
    before, behind, runs, empty = torch.stack([before, behind, runs, (seen[:, -1] == 0).long()]).tolist()
    for row, (zeros, count, none) in enumerate(zip(behind, runs, empty, strict=True)):
        if count > 1:
            raise ValueError(f"attention_mask has zeros within sequence {row}; pad before it (padding_side='left')")
        if zeros and new and not none:
            raise ValueError(
                f"attention_mask has zeros behind sequence {row}, which the cache would go on with; pad before it "
                f"(tokenizer.padding_side = 'left')"
            )
    return tuple(before) if any(before) else None


def _documents(inputs: dict[str, Any], tokens: Tensor) -> Documents | None:
    """The lengths of the documents packed in each row; None where no row has more than one.

    Raises:
        ValueError: In a compiled graph, where positions are known to the device alone.
    """
    bounds: Tensor | None = inputs.get("cu_seq_lens_q")
    positions: Any = inputs.get("position_ids")
    if bounds is None and positions is None:
        return None
    if torch.compiler.is_compiling():
        raise ValueError(
            "position_ids without an attention_mask may mean packed sequences, whose lengths a compiled graph cannot "
            "ask for; give an attention_mask of ones, or call the model without torch.compile"
        )
    if bounds is not None:
        return (tuple(int(length) for length in bounds.diff() if length),)
    starts = [[0, *((row.diff() != 1).nonzero().flatten() + 1).tolist()] for row in positions]
    if all(len(row) == 1 for row in starts):
        return None
    length = tokens.shape[1]
    lengths = [tuple(b - a for a, b in zip(row, [*row[1:], length], strict=True)) for row in starts]
    return tuple(lengths if len(lengths) == tokens.shape[0] else lengths * tokens.shape[0])
