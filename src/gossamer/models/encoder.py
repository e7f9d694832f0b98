"""A BERT-like encoder of post-LN blocks, whose attention is what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from ..config import EncoderConfig
from ..nn.activations import ACTIVATIONS
from ..nn.recomputation import Keeping, recomputed
from .heads import ClassificationHead, Encoded, Head, Pooler, QuestionAnsweringHead


class EncoderOutput(NamedTuple):
    """What a forward gives. Without targets a head gives logits, with them its loss."""

    features: Float[Tensor, "B N E"]
    """The last block's output."""
    pooled: Float[Tensor, "B E"] | None
    """The pooler's, where it is the head."""
    logits: Float[Tensor, "B ..."] | None
    loss: Float[Tensor, ""] | None
    layers: tuple[Float[Tensor, "B N E"], ...] | None
    """The embeddings and every block's output, where asked for."""


class Embeddings(nn.Module):
    """The sum of a token's, its kind's and its position's row, normalised and then dropped from."""

    def __init__(self, config: EncoderConfig, *, padding_position: int | None = None):
        super().__init__()
        width = config.hidden_size
        self.tokens = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.positions = nn.Embedding(config.max_position_embeddings, width, padding_idx=padding_position)
        self.token_types = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        tokens: Int64[Tensor, "B N"],
        token_type_ids: Int64[Tensor, "B N"] | None = None,
        position_ids: Int64[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        position_ids = self.places(tokens) if position_ids is None else position_ids
        kinds = self.token_types.weight[0] if token_type_ids is None else self.token_types(token_type_ids)
        return self.finish(self.tokens(tokens), self.positions(position_ids) + kinds)

    def places(self, tokens: Int64[Tensor, "B N"]) -> Int64[Tensor, "#B N"]:
        """The position that each token has by default."""
        return torch.arange(tokens.shape[1], device=tokens.device)[None]

    def finish(self, tokens: Float[Tensor, "B N E"], rest: Float[Tensor, "#B N E"]) -> Float[Tensor, "B N E"]:
        """The embeddings of the tokens' rows and the other rows' sum."""
        return self.drop(self.norm(tokens + rest))


class FeedForward(nn.Module):
    """Two linear layers with the configuration's activation between them."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Attention and then two linear layers, each added to its input and normalised after it (post-LN)."""

    def __init__(self, config: EncoderConfig, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Float[Tensor, "B N E"], seen: Mapping[str, Any]) -> Float[Tensor, "B N E"]:
        """The features after this block; `seen` is handed to its attention, name by name."""
        x = self.attention_norm(x + self.drop(self.attention(x, **seen)))
        return self.mlp_norm(x + self.drop(self.mlp(x)))


class Encoder(nn.Module):
    """Embeddings, blocks whose attention `attention(layer)` builds, and perhaps a head.

    Any length up to `config.longest` runs, without padding to a multiple. With `checkpointing` set, each block's
    activations are computed again in the backward instead of being kept.
    """

    def __init__(
        self,
        config: EncoderConfig,
        embeddings: Embeddings,
        attention: Callable[[int], nn.Module],
        head: Head | None = None,
    ):
        super().__init__()
        self.config = config
        self.checkpointing: bool | Keeping = False
        self.embeddings = embeddings
        self.blocks: Any = nn.ModuleList(Block(config, attention(layer)) for layer in range(config.num_hidden_layers))
        self.head = head
        initialise(self, config.initializer_range)

    def run(
        self,
        tokens: Int64[Tensor, "B N"],
        targets: Tensor | None,
        seen: Mapping[str, Any],
        *,
        token_type_ids: Int64[Tensor, "B N"] | None = None,
        position_ids: Int64[Tensor, "B N"] | None = None,
        return_layers: bool = False,
        of_layers: Sequence[Mapping[str, Any]] | None = None,
    ) -> EncoderOutput:
        """Features, and what the head makes of them.

        Every attention is called with what `seen` holds, and with its layer's entry of `of_layers`.
        """
        self._require_tokens(tokens)
        if targets is not None:
            self._require_targets(targets, tokens)
        x = self.embeddings(tokens, token_type_ids, position_ids)
        layers = [x]
        for block, own in zip(self.blocks, of_layers or [{}] * len(self.blocks), strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                block = recomputed(block, self.checkpointing)
            x = block(x, {**seen, **own})
            if return_layers:
                layers.append(x)
        within = seen.get("within")
        starts = None if within is None else within[:, 0].long()
        encoded = Encoded(x, tokens, starts, self.embeddings.tokens.weight)
        return EncoderOutput(x, *self._headed(encoded, targets), layers=tuple(layers) if return_layers else None)

    def _headed(self, encoded: Encoded, targets: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(pooled, logits, loss): what the head gives of them."""
        if self.head is None:
            return None, None, None
        if targets is not None:
            return None, None, self.head.loss(encoded, targets)
        made = self.head(encoded)
        return (made, None, None) if isinstance(self.head, Pooler) else (None, made, None)

    def _require_tokens(self, tokens: Tensor) -> None:
        name = type(self).__name__
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"{name}: tokens are {tokens.dtype} {list(tokens.shape)}; give int64 [batch, length]")
        if tokens.shape[1] == 0 and isinstance(self.head, Pooler | ClassificationHead | QuestionAnsweringHead):
            raise ValueError(
                f"{name}: tokens are {list(tokens.shape)}, of which {type(self.head).__name__} has nothing to read; "
                "give at least one token"
            )
        if tokens.shape[1] > self.config.longest:
            raise ValueError(
                f"{name}: {tokens.shape[1]} tokens, but positions for {self.config.longest} alone; give fewer, or a "
                f"model of more than max_position_embeddings={self.config.max_position_embeddings}"
            )

    def _require_targets(self, targets: Tensor, tokens: Tensor) -> None:
        if self.head is None or isinstance(self.head, Pooler):
            raise ValueError(f"{type(self).__name__}: targets are given, but there is no head with a loss; choose one")
        self.head.require_targets(targets, tokens)


def initialise(model: nn.Module, deviation: float) -> None:
    """BERT's initial weights: normal numbers, no biases, and zeros where padding is looked up."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight.data[module.padding_idx])


def require_shape(name: str, mask: Tensor | None, tokens: Tensor) -> None:
    """A mask is absent or as long as the tokens, or this raises ValueError."""
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(f"{name} is {list(mask.shape)}; give {list(tokens.shape)}, as the tokens")


def runs_of(attention_mask: Bool[Tensor, "B N"] | Int[Tensor, "B N"] | Float[Tensor, "B N"]) -> Int[Tensor, "B 2"]:
    """Where each row's ones begin and end, as attention takes it (`within`); a row of zeros begins and ends at 0.

    Waits for the device once.

    >>> runs_of(torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]])).tolist()
    [[0, 2], [1, 3], [0, 0]]

    Raises:
        ValueError: A row's ones are not one run, or something is neither 0 nor 1.
    """
    if attention_mask.shape[1] == 0:
        return attention_mask.new_zeros((len(attention_mask), 2), dtype=torch.int32)
    ones = attention_mask != 0
    first = ones.int().argmax(1)
    within = torch.stack([first, first + ones.sum(1)], 1)  # [B, 2]
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    run = (within[:, :1] <= positions) & (positions < within[:, 1:])
    right = (run.to(attention_mask.dtype) == attention_mask).all(1)
    if not right.all():
        row = int(right.int().argmin())
        raise ValueError(
            f"attention_mask: row {row} is not one run of ones among zeros; give 1 where a text is and 0 where padding "
            "before or after it is: texts with holes are not computed"
        )
    return within.int()
