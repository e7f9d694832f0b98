"""Reformer's hashed attention, by transformers and by us."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from gossamer.bench.setting import Setting
from gossamer.nn.lsh import LSHAttention
from gossamer.selectors.lsh import LSH

from .modules import Made, System, inputs

LSH_OF_BOTH = LSH.trax(rounds=4, chunk=64)


class Theirs(nn.Module):
    """The module of transformers with the projection that follows it."""

    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        counts = LSH_OF_BOTH.bucket_counts(length)
        config = ReformerConfig(
            hidden_size=width,
            num_attention_heads=heads,
            attention_head_size=width // heads,
            lsh_attn_chunk_length=LSH_OF_BOTH.chunk,
            num_hashes=LSH_OF_BOTH.rounds,
            num_buckets=list(counts) if len(counts) > 1 else counts[0],
            lsh_attention_probs_dropout_prob=0.0,
            is_decoder=True,
        )
        self.attention, self.output = LSHSelfAttention(config), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, buckets: Tensor | None = None) -> Tensor:
        return self.output(self.attention(x, buckets=buckets).hidden_states)


def theirs(setting: Setting, length: int, dtype: torch.dtype) -> Made:
    """The module of transformers, which draws a hash at each call."""
    torch.manual_seed(setting.config.seed)
    config = setting.config
    module = Theirs(config.heads * config.head_width, config.heads, length)
    module.to(setting.device, dtype)
    return Made(module, module)


def ours(setting: Setting, length: int, dtype: torch.dtype, lsh: LSH = LSH_OF_BOTH) -> Made:
    """Our module with its weights, which draws a hash at each call too."""
    config, given = setting.config, theirs(setting, length, dtype).module
    module = LSHAttention(config.heads * config.head_width, config.heads, lsh)
    module.to(setting.device, dtype)
    module.query_key.load_state_dict(given.attention.query_key.state_dict())
    module.value.load_state_dict(given.attention.value.state_dict())
    module.dense.load_state_dict(given.output.state_dict())
    return Made(module, module)


def alike(setting: Setting, length: int, dtype: torch.dtype) -> tuple[Made, Made]:
    """Both with the buckets that theirs draws in float32."""
    buckets = _buckets(setting, length)
    them, us = theirs(setting, length, dtype).module, ours(setting, length, dtype).module
    return Made(them, partial(them, buckets=buckets)), Made(us, partial(us, buckets=_by_round(buckets, length)))


@lru_cache(maxsize=1)
def _buckets(setting: Setting, length: int) -> Tensor:
    x = inputs(setting, length, batch=1)[0].float()
    with torch.no_grad():
        return theirs(setting, length, torch.float32).module.attention(x).buckets


def _by_round(buckets: Tensor, length: int) -> Tensor:
    """[B, H, R, N] from [B, H, R · N]."""
    return buckets.reshape(*buckets.shape[:2], -1, length)


PAPER = LSH.paper(rounds=LSH_OF_BOTH.rounds, chunk=LSH_OF_BOTH.chunk)
REFORMER = System("reformer", theirs, {"gossamer": ours, "gossamer, as the paper": partial(ours, lsh=PAPER)}, alike)
