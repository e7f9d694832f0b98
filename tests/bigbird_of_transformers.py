"""The BigBird of transformers as an oracle, and the random blocks that it draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdAttention, BigBirdBlockSparseAttention, BigBirdModel

from gossamer.nn import BigBirdAttention as Ours


def drawn_blocks(attention: BigBirdBlockSparseAttention, length: int) -> np.ndarray:
    """[heads, blocks - 2, random], what its forward in training draws for `length` tokens: the same calls again.

    It seeds NumPy's global generator by the number of the layer; this puts the generator back.
    """
    block, heads, random = attention.block_size, attention.num_attention_heads, attention.num_random_blocks
    before = np.random.get_state()
    np.random.seed(attention.seed)
    if length in (1024, 3072, 4096):
        longest, rows = attention.max_seqlen, length // block - 2
        plans = [
            attention._bigbird_block_rand_mask(longest, longest, block, block, random, last_idx=1024)[:rows]
            for _ in range(heads)
        ]
    else:
        plan = attention._get_rand_attn_plan(length, block, random)
        plans = attention._bigbird_block_rand_mask_with_head(length, length, block, block, heads, *plan)
    np.random.set_state(before)
    return np.stack(plans)


def drawn_by(model: nn.Module, length: int) -> list[np.ndarray]:
    """What each layer of one of their models draws in training for `length` tokens, which it fills up to blocks."""
    body = model if isinstance(model, BigBirdModel) else model.bert
    padded = length + -length % body.block_size
    return [drawn_blocks(layer.attention.self, padded) for layer in body.encoder.layer]


def config(**settings: object) -> BigBirdConfig:
    """A small one that drops nothing."""
    given = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "block_size": 4,
        "num_random_blocks": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "sep_token_id": 2,
    }
    return BigBirdConfig(**(given | settings))


def twins(settings: BigBirdConfig, ours: Ours) -> BigBirdAttention:
    """Their attention with the weights of ours, in training."""
    theirs = BigBirdAttention(settings, seed=ours.layer).train()
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(theirs.self, name).load_state_dict(getattr(ours, name).state_dict())
        theirs.output.dense.load_state_dict(ours.output.state_dict())
    return theirs


def attended(theirs: BigBirdAttention, x: Tensor, real: Tensor | None = None) -> Tensor:
    """What their attention gives, through the output projection, without the norm after it.

    `real` [B, N] is 1 where a token is no padding. Lengths are filled up to whole blocks as their model does it.
    """
    block, length = theirs.self.block_size, x.shape[1]
    missing = -length % block
    real = x.new_ones(x.shape[:2]) if real is None else real.to(x.dtype)
    x, real = torch.nn.functional.pad(x, (0, 0, 0, missing)), torch.nn.functional.pad(real, (0, missing))
    blocked, band, own, other = BigBirdModel.create_masks_for_block_sparse_attn(real, block)
    out, _ = theirs.self(x, band, own, other, blocked, blocked)
    return theirs.output.dense(out)[:, :length]
