"""What is done before each forward of a switched decoder: its cache chosen, its frame made."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticCache

from ...patterns import Pattern
from .attention import FRAME, NAME, flat
from .cache import await_keys, evicting_cache, evicts, is_dynamic, is_new, keep_all, length_of, take_over
from .frame import Documents, Frame
from .layers import NEW_CACHE, OLD_CACHE


@dataclass
class Before:
    """The hook before a switched decoder's forward."""

    evict: bool
    """Whether keys that no later query reads are dropped."""
    replaced: str
    """The attention that the model had before."""
    patterns: dict[int, Pattern]
    """What each layer's queries see."""
    names: tuple[str, ...]
    """What the decoder's forward calls its arguments, in their order."""
    warned: bool = field(default=False, init=False)

    def __call__(self, decoder: PreTrainedModel, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if decoder.config._attn_implementation != NAME:
            self._warn(decoder)
            return args, given
        if OLD_CACHE in given and OLD_CACHE not in self.names:  # the decoder would rename it, but only after this
            given = {self.cache_name: given[OLD_CACHE], **given}
            del given[OLD_CACHE]
        inputs = {**dict(zip(self.names, args, strict=False)), **given}
        tokens = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
        if tokens is None:
            return args, given  # the decoder itself says what is missing
        changed = self._changed(decoder, inputs, tokens)
        args = tuple(changed.pop(name, given) for name, given in zip(self.names, args, strict=False))
        return args, {**given, **changed}

    @property
    def cache_name(self) -> str:
        """What the decoder's forward calls its cache."""
        return NEW_CACHE if NEW_CACHE in self.names else OLD_CACHE

    def _changed(self, decoder: PreTrainedModel, inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
        """The arguments of the decoder's forward that are to be others than the caller gave."""
        if _asked(decoder, inputs, "output_attentions"):
            raise ValueError(
                "output_attentions=True: sparse attention makes no matrix of weights; leave it out, or ask the dense "
                "model, after gossamer.densify(model)"
            )
        mask, cache = flat(inputs.get("attention_mask")), inputs.get(self.cache_name)
        documents = _documents(inputs, tokens) if mask is None and _may_be_packed(cache) else None
        if documents is not None:
            if cache is not None:
                raise ValueError("packed sequences have no cache: leave past_key_values out, or give them one by one")
            return {FRAME: self._frame(mask, None, tokens, documents)}
        if cache is None and inputs.get("use_cache") is None and mask is not None and pads_behind(mask):
            return {FRAME: self._frame(mask, None, tokens, None), "use_cache": False}  # nothing can go on behind it
        cache = self._cache(decoder, cache, inputs)
        changed = {FRAME: self._frame(mask, cache, tokens, None)}
        return changed if cache is None else {**changed, self.cache_name: cache}

    def _cache(self, decoder: PreTrainedModel, cache: Cache | None, inputs: dict[str, Any]) -> Cache | None:
        """The cache that this forward fills, with layers that keep what the patterns read.

        Where gradients or a graph are made of the forward, no keys are dropped.
        """
        patterns = list(self.patterns.values())
        evict = self.evict and not decoder.training and not torch.compiler.is_compiling()
        if cache is None:
            return evicting_cache(patterns) if evict and _asked(decoder, inputs, "use_cache") else None
        if evicts(cache):
            await_keys(cache, patterns)
        elif is_new(cache) and evict and is_dynamic(cache):
            take_over(cache, patterns)
        elif is_new(cache):
            keep_all(cache)
        return cache

    def _frame(self, mask: Tensor | None, cache: Cache | None, tokens: Tensor, documents: Documents | None) -> Frame:
        past, new = length_of(cache), tokens.shape[1]
        if mask is not None and isinstance(past, int):
            _require_width(mask, past + new, isinstance(cache, StaticCache))
        if cache is not None and evicts(cache):
            layers: list[Any] = cache.layers
            if mask is not None and (new > 1 or layers[0].held.may_be_padded):
                padding = leading_padding(mask[:, : past + new], new) or (0,) * len(tokens)
                for layer in layers:
                    layer.held.pad(padding)
            return Frame(past + new, self.patterns, cache=cache)
        if mask is None:
            return Frame(past + new, self.patterns, documents=documents)
        if torch.compiler.is_compiling():
            return Frame(past + new, self.patterns, (mask == 0).long().cumprod(1).sum(1))
        goes_on = 0 if cache is None else new
        return Frame(past + new, self.patterns, leading_padding(mask[:, : past + new], goes_on))

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


def _may_be_packed(cache: Cache | None) -> bool:
    """Static caches are for generation alone, and so is any that a compiled forward is given."""
    if cache is None or torch.compiler.is_compiling():
        return cache is None
    return is_new(cache) and not isinstance(cache, StaticCache)


def _asked(decoder: PreTrainedModel, inputs: dict[str, Any], name: str) -> bool:
    """Whether the caller wants it, or its configuration where the caller does not say."""
    asked = inputs.get(name)
    return bool(getattr(decoder.config, name, False) if asked is None else asked)


def pads_behind(mask: Tensor) -> bool:
    """Whether the last token of some sequence is padding; a compiled graph does not ask."""
    return not torch.compiler.is_compiling() and not bool(mask[:, -1].all())


def _require_width(mask: Tensor, tokens: int, has_room: bool) -> None:
    if mask.shape[1] < tokens or (mask.shape[1] > tokens and not has_room):
        raise ValueError(
            f"attention_mask is of {mask.shape[1]} tokens, but there are {tokens} with those of the cache; give one "
            f"number for each"
        )


def leading_padding(mask: Tensor, new: int) -> tuple[int, ...] | None:
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
    if positions.dim() == 3:  # of several kinds, the first of which are those in the text, if there are four
        if len(positions) != 4:
            return None
        positions = positions[0]
    starts = [[0, *((row.diff() != 1).nonzero().flatten() + 1).tolist()] for row in positions]
    if all(len(row) == 1 for row in starts):
        return None
    length = tokens.shape[1]
    lengths = [tuple(b - a for a, b in zip(row, [*row[1:], length], strict=True)) for row in starts]
    return tuple(lengths if len(lengths) == tokens.shape[0] else lengths * tokens.shape[0])
