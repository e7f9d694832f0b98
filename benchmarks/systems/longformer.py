"""Longformer's attention with one global token, by transformers and by us."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from gossamer.attention import attend
from gossamer.bench.case import Case, Contender, Step
from gossamer.bench.gate import Trial, fault
from gossamer.bench.setting import Setting
from gossamer.nn.global_tokens import GlobalTokens
from gossamer.nn.longformer import LongformerAttention
from gossamer.patterns import presets

from .modules import Made, System

GLOBAL = 10_000.0
"""What stands for a global token in the mask that the module of transformers takes."""
SHARED = ("query", "key", "value", "query_global", "key_global", "value_global")
HALF = "gossamer, half the window"


class Theirs(nn.Module):
    """The module of transformers with the projection that follows it."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        config = LongformerConfig(
            hidden_size=width,
            num_attention_heads=heads,
            attention_window=[window],
            num_hidden_layers=1,
            attention_probs_dropout_prob=0.0,
        )
        self.attention, self.output = LongformerSelfAttention(config, 0), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.arange(x.shape[1], device=x.device) == 0
        chosen = first.expand(len(x), -1)
        given = {"is_index_masked": torch.zeros_like(chosen), "is_index_global_attn": chosen, "is_global_attn": True}
        mask = torch.where(chosen, GLOBAL, 0.0).to(x.dtype)
        return self.output(self.attention(x, attention_mask=mask, **given)[0])


def theirs(setting: Setting, length: int, dtype: torch.dtype) -> Made:
    """The module of transformers at the benchmark's window."""
    torch.manual_seed(setting.config.seed)
    config = setting.config
    module = Theirs(config.heads * config.head_width, config.heads, config.window)
    module.to(setting.device, dtype)
    return Made(module, module)


def ours(setting: Setting, length: int, dtype: torch.dtype) -> Made:
    """Our module with its weights."""
    config, given = setting.config, theirs(setting, length, dtype).module
    module = LongformerAttention(config.heads * config.head_width, config.heads, window=config.window)
    module.to(setting.device, dtype)
    for name in SHARED:
        getattr(module, name).load_state_dict(getattr(given.attention, name).state_dict())
    module.output.load_state_dict(given.output.state_dict())

    @cache
    def chosen(rows: int) -> GlobalTokens:
        """Found at the first call: a model finds them once for all its layers."""
        first = torch.arange(length, device=setting.device) == 0
        return GlobalTokens.of(first.expand(rows, -1))

    return Made(module, lambda x: module(x, chosen=chosen(len(x))))


def halved(setting: Setting, length: int, dtype: torch.dtype) -> Made:
    """Our module at half the window."""
    return ours(replace(setting, config=replace(setting.config, window=setting.config.window // 2)), length, dtype)


def alike(setting: Setting, length: int, dtype: torch.dtype) -> tuple[Made, Made]:
    """Nothing is drawn here."""
    return theirs(setting, length, dtype), ours(setting, length, dtype)


LONGFORMER = System("longformer", theirs, {"gossamer": ours, HALF: halved}, alike)


def attention_case(setting: Setting) -> Case:
    """The pattern alone, forward with backward, at the whole and at half the window."""

    def contender(name: str, window: int) -> Contender:
        pattern = presets.longformer(window)
        attention = partial(attend, pattern=pattern)

        def prepare(length: int) -> Step:
            *inputs, grad_out = setting.draw(length)
            leaves = [x.detach().requires_grad_() for x in inputs]
            return lambda: torch.autograd.grad(attention(*leaves), leaves, grad_out)

        trial = Trial(2 * window, 2, setting.config.head_width, setting.dtype, setting.device)
        return Contender(name, prepare, fault=lambda: fault(attention, pattern, trial))

    window = setting.config.window
    contenders = contender("gossamer", window), contender(HALF, window // 2)
    return Case("longformer's pattern", setting.config.lengths, contenders)
