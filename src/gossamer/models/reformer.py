"""Reformer (Kitaev, Kaiser and Levskaya 2020, arXiv 2001.04451), and its weights as transformers keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int, Int32, Int64
from torch import Tensor, nn

from ..config import ReformerConfig
from ..nn.axial import AxialPositions
from ..nn.chunked_feed_forward import ChunkedFeedForward
from ..nn.chunked_local import ChunkedLocalAttention
from ..nn.loss import linear_cross_entropy
from ..nn.lsh import LSHAttention
from ..nn.reversible import ReversibleLayers
from ..selectors import LSH
from . import pretrained
from .encoder import initialise, require_shape, runs_of
from .heads import IGNORED_TARGET, ClassificationHead, Encoded, Head, require_classes

HeadName = Literal["lm", "masked_lm", "classification"]

FAMILY = pretrained.Family(
    model_type="reformer",
    prefix="reformer.",
    heads={
        "pooler": ("ReformerModel", ()),  # what is saved without a head
        "lm": ("ReformerModelWithLMHead", ((r"^head\.decoder\.", "lm_head.decoder."),)),
        "masked_lm": ("ReformerForMaskedLM", ((r"^head\.decoder\.", "lm_head.decoder."),)),
        "classification": (
            "ReformerForSequenceClassification",
            ((r"^head\.dense\.", "classifier.dense."), (r"^head\.out\.", "classifier.out_proj.")),
        ),
    },
    repeated={},
    left=("lm_head.bias", "qa_outputs."),
    left_ends=("mask_value_float16", "mask_value_float32"),  # buffers that old files carry
    otherwise={"lm_head.decoder.bias": "lm_head.bias"},
    supported={"tie_word_embeddings": (False,), "hash_seed": (None,)},
    theirs=lambda config: config.lsh_rules == "trax",
    body=(
        (r"^embeddings\.tokens\.", "embeddings.word_embeddings."),
        (r"^embeddings\.positions\.weights\.", "embeddings.position_embeddings.weights."),
        (r"^embeddings\.positions\.", "embeddings.position_embeddings.embedding."),
        (r"^blocks\.layers\.(\d+)\.attention\.norm\.", r"encoder.layers.\1.attention.layer_norm."),
        (r"^blocks\.layers\.(\d+)\.attention\.inner\.dense\.", r"encoder.layers.\1.attention.output.dense."),
        (r"^blocks\.layers\.(\d+)\.attention\.inner\.", r"encoder.layers.\1.attention.self_attention."),
        (r"^blocks\.layers\.(\d+)\.feed_forward\.layer_norm\.", r"encoder.layers.\1.feed_forward.layer_norm."),
        (r"^blocks\.layers\.(\d+)\.feed_forward\.inner\.", r"encoder.layers.\1.feed_forward.dense.dense."),
        (r"^blocks\.layers\.(\d+)\.feed_forward\.outer\.", r"encoder.layers.\1.feed_forward.output.dense."),
        (r"^norm\.", "encoder.layer_norm."),
    ),
)


class ReformerOutput(NamedTuple):
    """What a forward gives. Without targets a head gives logits, with them its loss."""

    features: Float[Tensor, "B N 2E"]
    """Both streams of the last layer, normalised together."""
    logits: Float[Tensor, "B ..."] | None
    loss: Float[Tensor, ""] | None
    buckets: list[Int64[Tensor, "B H R P"] | None]
    """What each layer hashed its tokens to, None for local layers; a forward that is given them repeats this one."""


class ReformerEmbeddings(nn.Module):
    """The sum of a token's row and its position's, each dropped from by itself."""

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.hidden_dropout_prob)
        self.positions = (
            AxialPositions(config.axial_pos_shape, config.axial_pos_embds_dim, dropout=config.hidden_dropout_prob)
            if config.axial_pos_embds
            else nn.Embedding(config.max_position_embeddings, config.hidden_size)
        )

    def forward(self, tokens: Int64[Tensor, "B N"]) -> Float[Tensor, "B N E"]:
        batch, length = tokens.shape
        if isinstance(self.positions, AxialPositions):
            return self.drop(self.tokens(tokens)) + self.positions(length, batch)
        positions = self.positions.weight[:length].expand(batch, -1, -1)
        return self.drop(self.tokens(tokens)) + self.drop(positions)


class ReformerAttention(nn.Module):
    """A layer's attention with the layer norm before it and the dropout after it."""

    def __init__(self, config: ReformerConfig, layer: int):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.inner = _local(config) if config.attn_layers[layer] == "local" else _lsh(config)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def draw(self, x: Float[Tensor, "B N E"]) -> Int64[Tensor, "B H R N"] | None:
        """The buckets that the layer norm of `x` hashes to, drawn anew; None in a local layer."""
        return self.inner.draw(self.norm(x))

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        *,
        within: Int32[Tensor, "B 2"] | None = None,
        buckets: Int64[Tensor, "B H R N"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        return self.drop(self.inner(self.norm(x), within=within, buckets=buckets))


class LanguageModelHead(Head):
    """Logits of the tokens, from both streams."""

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.rows = config.chunk_size_lm_head or None
        self.decoder = nn.Linear(2 * config.hidden_size, config.vocab_size)

    def forward(self, encoded: Encoded) -> Float[Tensor, "B N V"]:
        return self.decoder(encoded.features)

    def require_targets(self, targets: Tensor, tokens: Int64[Tensor, "B N"]) -> None:
        require_classes(targets, tokens.shape, self.decoder.out_features)

    def loss(self, encoded: Encoded, targets: Int64[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Mean cross-entropy (in nats) where `targets` is not -100; few tokens have logits at a time."""
        weight, bias = self.decoder.weight, self.decoder.bias
        return linear_cross_entropy(
            encoded.features, weight, targets, bias=bias, ignored=IGNORED_TARGET, rows=self.rows
        )


class Reformer(nn.Module, pretrained.Pretrained):
    """Reversible layers of local and of hashed attention: features of every token, and what a head makes of them.

    Heads: `lm` (the next token, where the configuration has `is_decoder`), `masked_lm` (where it has not) and
    `classification`; None gives features alone. Training keeps the activations of no layer; `blocks.stored = True`
    keeps them all, and is faster where they fit.

    >>> config = ReformerConfig(hidden_size=32, attn_layers=["local", "lsh"], axial_pos_embds_dim=[8, 24])
    >>> Reformer(config, head="masked_lm").eval()(torch.full((1, 70), 7)).logits.shape
    torch.Size([1, 70, 320])
    """

    family, kind = FAMILY, ReformerConfig

    def __init__(self, config: ReformerConfig, head: HeadName | None = None):
        super().__init__()
        self.config, self.head_name = config, head
        self.embeddings = ReformerEmbeddings(config)
        self.blocks = ReversibleLayers(
            (ReformerAttention(config, layer), _feed_forward(config)) for layer in range(len(config.attn_layers))
        )
        self.norm = nn.LayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)
        self.drop = nn.Dropout(config.hidden_dropout_prob)
        self.head = _head(config, head)
        initialise(self, config.initializer_range)
        if isinstance(self.embeddings.positions, AxialPositions):
            for table in self.embeddings.positions.weights:
                nn.init.normal_(table, std=config.axial_norm_std)

    def forward(
        self,
        tokens: Int64[Tensor, "B N"],
        targets: Tensor | None = None,
        *,
        attention_mask: Bool[Tensor, "B N"] | Int[Tensor, "B N"] | Float[Tensor, "B N"] | None = None,
        buckets: Sequence[Int64[Tensor, "B H R P"] | None] | None = None,
    ) -> ReformerOutput:
        """Features, and the head's logits or, with `targets`, its loss.

        Sequences are filled up to P tokens, `config.padded(N)`, which nobody sees, and cut again.

        Args:
            targets: What the head's `loss` takes: for `lm` the token after each one. -100 is left out.
            attention_mask: 1 where a row's text is, 0 where padding before or after it is. Positions count from the
                row's first place, padding or not.
            buckets: What each layer's tokens are hashed to, as an earlier output of such a batch has it; by default
                each layer hashes anew.

        Raises:
            ValueError: A shape, a dtype or a target is wrong, there are more tokens than positions or none to classify
                by, a row of `attention_mask` is not one run of ones, or a model in training is to drop attention
                weights of LSH layers.
        """
        self._require_tokens(tokens)
        if targets is not None:
            self._require_targets(targets, tokens)
        require_shape("attention_mask", attention_mask, tokens)
        self._require_buckets(buckets, tokens)
        self._require_no_dropout_of_hashed_weights()
        batch, length = tokens.shape
        within = None if attention_mask is None else runs_of(attention_mask)
        starts = None if within is None else within[:, 0].long()
        x, added = self.embeddings(tokens), self.config.padded(length) - length
        if added:
            x = torch.cat([x, x[:, -1:].detach().expand(-1, added, -1)], dim=1)  # rows of zeros have no variance
            within = _whole(batch, length, tokens.device) if within is None else within
        y1, y2, drawn = self.blocks(x, x, within=within, buckets=buckets)
        features = self.drop(self.norm(torch.cat([y1, y2], dim=-1)[:, :length]))
        logits = loss = None
        if self.head is not None:
            encoded = Encoded(features, tokens, starts, self.embeddings.tokens.weight)
            logits = self.head(encoded) if targets is None else None
            loss = None if targets is None else self.head.loss(encoded, targets)
        return ReformerOutput(features, logits, loss, drawn)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        head: str | None = None,
        new_head: bool = False,
        num_hashes: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The model in a folder that transformers' `save_pretrained` wrote, in float32; weights may be in shards.

        Args:
            head: Which head to read. Tensors of other heads are left.
            new_head: Where the folder has none of the head's tensors, begin it anew.
            num_hashes: Rounds of hashing, where they are to be others than the file says: more see more.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: Something is damaged, unknown or missing; the message names the file, the tensor and the fix.
        """
        return cls._read(folder, head, new_head, num_hashes=num_hashes).to(device)

    def _require_tokens(self, tokens: Tensor) -> None:
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"Reformer: tokens are {tokens.dtype} {list(tokens.shape)}; give int64 [batch, length]")
        if tokens.shape[1] > self.config.longest:
            raise ValueError(
                f"Reformer: {tokens.shape[1]} tokens, but positions for {self.config.longest} alone; give fewer, or a "
                f"model of larger max_position_embeddings and axial_pos_shape"
            )
        if not tokens.shape[1] and self.head_name == "classification":
            raise ValueError(
                f"Reformer: tokens are {list(tokens.shape)}; give at least one: classification reads a text's first"
            )

    def _require_targets(self, targets: Tensor, tokens: Tensor) -> None:
        if self.head is None:
            raise ValueError("Reformer: targets are given, but there is no head with a loss; choose one")
        self.head.require_targets(targets, tokens)

    def _require_buckets(self, buckets: Sequence[Tensor | None] | None, tokens: Tensor) -> None:
        batch, heads, length = tokens.shape[0], self.config.num_attention_heads, self.config.padded(tokens.shape[1])
        for layer, (kind, own) in enumerate(zip(self.config.attn_layers, buckets or (), strict=False)):
            if own is None:
                continue
            fits = own.dim() == 4 and (*own.shape[:2], own.shape[3]) == (batch, heads, length)
            if kind == "local" or not fits or own.dtype != torch.int64:
                hashed = f"give int64 [{batch}, {heads}, rounds, {length}], or None to hash anew"
                fix = "nothing is hashed there: give None" if kind == "local" else hashed
                raise ValueError(f"Reformer: buckets of layer {layer} are {own.dtype} {list(own.shape)}; {fix}")

    def _require_no_dropout_of_hashed_weights(self) -> None:
        share = self.config.lsh_attention_probs_dropout_prob
        if self.training and share and "lsh" in self.config.attn_layers:
            raise ValueError(
                f"Reformer: lsh_attention_probs_dropout_prob is {share}, but hashed attention drops no weights; set it "
                "to 0.0 for training, in config.json for a saved model"
            )


def _local(config: ReformerConfig) -> ChunkedLocalAttention:
    return ChunkedLocalAttention(
        config.hidden_size,
        config.num_attention_heads,
        chunk=config.local_attn_chunk_length,
        before=config.local_num_chunks_before,
        after=config.local_num_chunks_after,
        causal=config.is_decoder,
        head_width=config.attention_head_size,
        dropout=config.local_attention_probs_dropout_prob,
    )


def _lsh(config: ReformerConfig) -> LSHAttention:
    rules = {"trax": LSH.trax, "paper": LSH.paper, "lucidrains": LSH.lucidrains}[config.lsh_rules]
    lsh = replace(
        rules(config.num_hashes, config.lsh_attn_chunk_length, causal=config.is_decoder),
        buckets=config.num_buckets,
        before=config.lsh_num_chunks_before,
        after=config.lsh_num_chunks_after,
    )
    return LSHAttention(config.hidden_size, config.num_attention_heads, lsh, head_width=config.attention_head_size)


def _feed_forward(config: ReformerConfig) -> ChunkedFeedForward:
    return ChunkedFeedForward(
        config.hidden_size,
        config.feed_forward_size,
        chunk=config.chunk_size_feed_forward,
        activation=config.hidden_act,
        dropout=config.hidden_dropout_prob,
        epsilon=config.layer_norm_eps,
    )


def _head(config: ReformerConfig, head: HeadName | None) -> Head | None:
    match head:
        case None:
            return None
        case "lm" | "masked_lm":
            if config.is_decoder != (head == "lm"):
                other = "masked_lm" if head == "lm" else "lm"
                raise ValueError(f"Reformer: head is {head!r}, but is_decoder is {config.is_decoder}; give {other!r}")
            return LanguageModelHead(config)
        case "classification":
            dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
            return ClassificationHead(config, "tanh", dropout, width=2 * config.hidden_size)
    raise ValueError(f"Reformer: head is {head!r}; give lm, masked_lm, classification or None")


def _whole(batch: int, length: int, device: torch.device) -> Int32[Tensor, "B 2"]:
    """Every sequence lies from 0 to `length`; made on the device, so that nothing waits."""
    within = torch.zeros(batch, 2, dtype=torch.int32, device=device)
    within[:, 1] = length
    return within
