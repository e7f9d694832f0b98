"""BigBird's attention, by transformers and by us."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BigBirdConfig as TheirConfig
from transformers import BigBirdModel
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

from gossamer.bench.setting import Setting
from gossamer.config import BigBirdConfig
from gossamer.nn.bigbird import BigBirdAttention

from .modules import Made, System


class Theirs(nn.Module):
    """The module of transformers with the projection that follows it."""

    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        self.config = TheirConfig(hidden_size=width, num_attention_heads=heads, max_position_embeddings=length)
        self.attention = BigBirdBlockSparseAttention(self.config, seed=0)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        everything = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
        blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
            everything, self.config.block_size
        )
        return self.output(self.attention(x, band, rows, columns, blocked, blocked)[0])


def theirs(setting: Setting, length: int, dtype: torch.dtype) -> Made:
    """The module of transformers as it is evaluated: in training it would draw its blocks anew on the CPU each time."""
    torch.manual_seed(setting.config.seed)
    config = setting.config
    module = Theirs(config.heads * config.head_width, config.heads, length).eval()
    module.to(setting.device, dtype)
    return Made(module, module)


def ours(setting: Setting, length: int, dtype: torch.dtype) -> Made:
    """Our module with its weights."""
    config, given = setting.config, theirs(setting, length, dtype).module
    module = BigBirdAttention(BigBirdConfig(hidden_size=given.config.hidden_size, num_attention_heads=config.heads))
    module.to(setting.device, dtype)
    for name in ("query", "key", "value"):
        getattr(module, name).load_state_dict(getattr(given.attention, name).state_dict())
    module.output.load_state_dict(given.output.state_dict())
    return Made(module, module)


def alike(setting: Setting, length: int, dtype: torch.dtype) -> tuple[Made, Made]:
    """Theirs in training, which draws the same blocks at each call, and ours with these handed over."""
    them, us = theirs(setting, length, dtype), ours(setting, length, dtype)
    them.module.train()
    return them, Made(us.module, partial(us.module, random_blocks=drawn(them.module.attention, length)))


def drawn(attention: BigBirdBlockSparseAttention, length: int) -> np.ndarray:
    """The random blocks that the module of transformers, in training, draws for each head and row of blocks."""
    size, count = attention.block_size, attention.num_random_blocks
    planned, counts = attention._get_rand_attn_plan(length, size, count)
    np.random.seed(attention.seed)
    with np.errstate(divide="ignore"):
        blocks = attention._bigbird_block_rand_mask_with_head(
            length, length, size, size, attention.num_attention_heads, planned, counts
        )
    return np.stack(blocks)


BIGBIRD = System("bigbird", theirs, {"gossamer": ours}, alike)
