"""The duplication task of the Reformer's paper (arXiv 2001.04451, section 5): 0w0w, the second w to be predicted."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from gossamer.config import ReformerConfig
from gossamer.models.reformer import Reformer

IGNORED = -100
Rounds = int | Literal["full"]
"""Rounds of hashing, or full attention between the same vectors."""


class Copies(NamedTuple):
    """Texts, and the token after each one where it can be known: within the second w."""

    tokens: Int64[Tensor, "B N"]
    targets: Int64[Tensor, "B N"]


def copies(batch: int, word: int, symbols: int, generator: torch.Generator) -> Copies:
    """Random words w of the symbols 1 ... `symbols`, each twice behind a 0.

    >>> copies(1, 3, 9, torch.Generator().manual_seed(0)).tokens.tolist()
    [[0, 3, 1, 4, 0, 3, 1, 4]]
    """
    drawn = torch.randint(1, symbols + 1, (batch, word), generator=generator, device=generator.device)
    half = torch.nn.functional.pad(drawn, (1, 0))  # 0w
    tokens = torch.cat([half, half], dim=1)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, word + 1 : -1] = drawn
    return Copies(tokens, targets)


def shape(word: int, symbols: int, *, width: int, heads: int, chunk: int, rounds: Rounds) -> ReformerConfig:
    """The paper's model of one layer, inner width as wide as the model, with learned positions.

    Every token sees its own bucket alone, and nobody twice (the paper's equations 13 to 16); a chunk holds twice a
    bucket's mean. `full` is one bucket in one chunk.
    """
    length = 2 * (word + 1)
    hashed = {"num_hashes": 1, "num_buckets": 1, "lsh_attn_chunk_length": length}
    if rounds != "full":
        hashed = {"num_hashes": rounds, "num_buckets": max(2, 2 * length // chunk), "lsh_attn_chunk_length": chunk}
    return ReformerConfig(
        vocab_size=symbols + 1,
        hidden_size=width,
        attn_layers=("lsh",),
        num_attention_heads=heads,
        attention_head_size=width // heads,
        feed_forward_size=width,
        is_decoder=True,
        max_position_embeddings=length,
        axial_pos_embds=False,
        lsh_rules="paper",
        hidden_dropout_prob=0.0,
        **hashed,
    )


def with_rounds(model: Reformer, rounds: Rounds, word: int, symbols: int, *, chunk: int) -> Reformer:
    """The same weights under other rounds of hashing, with chunks of this size, or under full attention."""
    config = model.config
    other = shape(word, symbols, width=config.hidden_size, heads=config.num_attention_heads, chunk=chunk, rounds=rounds)
    with torch.device("meta"):
        made = Reformer(other, head="lm")
    made.load_state_dict(model.state_dict(), assign=True)
    return made.eval()


def loss_of(model: Reformer, batch: Copies, *, half: bool) -> Tensor:
    """Mean cross-entropy where the token can be known."""
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=half):
        return model(batch.tokens, batch.targets).loss


@torch.no_grad()
def accuracy(model: Reformer, batch: Copies, *, half: bool, rows: int = 64) -> float:
    """Share of the tokens that can be known and are."""
    right = []
    for tokens, targets in zip(batch.tokens.split(rows), batch.targets.split(rows), strict=True):
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
            found = model(tokens).logits.argmax(-1)
        right.append((found == targets).sum())
    return torch.stack(right).sum().item() / (batch.targets != IGNORED).sum().item()
