"""GPT-2 (Radford et al. 2019) whose attention is dense, sparse, a window of each layer's own or to chosen keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..config import GPT2Config, IndexerConfig, SparseAttentionConfig
from ..nn.dense import CausalSelfAttention
from ..nn.indexed import IndexedAttention
from ..nn.indexing import Indexing, loss_of
from ..nn.loss import linear_cross_entropy
from ..nn.positions import positions
from ..nn.recomputation import Keeping, recomputed
from ..nn.self_attention import SelfAttention
from ..nn.sparse import Intermediate, SparseAttention
from ..nn.surroundings import Surroundings
from ..nn.windowed import WindowedAttention
from . import weights
from .initial_weights import initialise, with_indexers

IGNORED_TARGET = -1

Capture = Intermediate | Indexing | None
"""What a layer looked at: the document's attention, one that chooses, or one of which there is nothing to say."""


class GPT2Output(NamedTuple):
    """What a forward gives: logits without targets, the loss with them, captures and indexers' losses if asked for."""

    logits: Float[Tensor, "B N V"] | None
    loss: Float[Tensor, ""] | None
    intermediates: list[Capture] | None
    indexer_losses: Float[Tensor, " L"] | None = None


class MLP(nn.Module):
    """Two linear layers, four times the model's width between them, with GPT-2's tanh GELU."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embed, 4 * config.n_embed, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embed, config.n_embed, bias=config.bias)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class TransformerBlock(nn.Module):
    """Attention and then an MLP, each on a layer norm of the residual stream (pre-LN).

    `layer` is its place from the bottom, which decides its window where each layer has its own.
    """

    def __init__(self, config: GPT2Config, layer: int = 0):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embed, config.layer_norm_epsilon, bias=config.bias)
        self.attn = _attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embed, config.layer_norm_epsilon, bias=config.bias)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        return_intermediate: bool = False,
        *,
        cache: Surroundings | None = None,
        layer: int = 0,
        planned_length: int | None = None,
    ) -> Float[Tensor, "B N E"] | tuple[Float[Tensor, "B N E"], Capture]:
        """The residual stream after this block; with `return_intermediate`, also its attention's captures."""
        attended = self.attn(self.ln_1(x), return_intermediate, cache=cache, layer=layer, planned_length=planned_length)
        attended, captured = attended if return_intermediate else (attended, None)
        x = x + self.drop(attended)
        x = x + self.drop(self.mlp(self.ln_2(x)))
        return (x, captured) if return_intermediate else x


class GPT2(nn.Module):
    """A GPT-2 language model: the next token's logits at every position, or the loss against targets.

    The output head is the token table itself. With `checkpointing` set, each block's activations are computed
    again in the backward instead of being kept: all with True, all but attention's with `keeping_attention`.

    >>> model = GPT2(GPT2Config(vocab_size=256, context_size=64, n_layer=2, n_head=2, n_embed=32))
    >>> model(torch.zeros(1, 10, dtype=torch.int64)).logits.shape
    torch.Size([1, 10, 256])
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.checkpointing: bool | Keeping = False
        self.wte = nn.Embedding(config.vocab_size, config.n_embed)
        self.wpe = nn.Embedding(config.context_size, config.n_embed) if config.positions == "learned" else None
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embed, config.layer_norm_epsilon, bias=config.bias)
        for name, parameter in self.named_parameters():
            initialise(name, parameter, config)

    def forward(
        self,
        tokens: Int64[Tensor, "B N"],
        targets: Int64[Tensor, "B N"] | None = None,
        *,
        cache: Surroundings | None = None,
        planned_length: int | None = None,
        return_intermediate: bool = False,
        indexer_losses: bool = False,
    ) -> GPT2Output:
        """Logits of the token after each one; with `targets`, their mean cross-entropy (in nats) instead.

        Args:
            targets: The token after each one; -1 is left out of the mean. Few tokens have logits at a
                time, so long contexts fit.
            indexer_losses: Also give, for each layer, how far its indexer's softmax is from where its heads look
                (KL divergence, nats a query). Their gradients reach the indexers alone, and the loss's all but them.

        The other arguments and the errors are those of `features`; captures and indexers' losses are not given at once.
        """
        if targets is not None and (targets.shape != tokens.shape or targets.dtype != torch.int64):
            raise ValueError(
                f"GPT2: targets are {targets.dtype} {list(targets.shape)}; give int64 {list(tokens.shape)}"
            )
        intermediates = losses = None
        if indexer_losses:
            self._require_indexers(return_intermediate)
            x, found = self._through(tokens, _with_loss, cache, planned_length)
            losses = torch.stack(found)
        else:
            x, intermediates = self.features(
                tokens, cache=cache, planned_length=planned_length, return_intermediate=return_intermediate
            )
        if targets is None:
            return GPT2Output(self.logits(x), None, intermediates, losses)
        return GPT2Output(None, self.loss(x, targets), intermediates, losses)

    def features(
        self,
        tokens: Int64[Tensor, "B N"],
        *,
        cache: Surroundings | None = None,
        planned_length: int | None = None,
        return_intermediate: bool = False,
    ) -> tuple[Float[Tensor, "B N E"], list[Capture] | None]:
        """What the output head reads, and each layer's captures: masks, window and sparsity of this very run.

        Args:
            cache: What stands around these tokens: a `KVCache` holds those before them, and afterwards these too.
            planned_length: How long the sequence may become; sparse attention plans its window for it. By
                default the cache's capacity, or N.
            return_intermediate: Give the captures (of a dense layer: None).

        Raises:
            ValueError: The tokens' shape or dtype is wrong, they reach beyond the context, or captures are asked for of
                a row that is packed or shared out.
        """
        if return_intermediate and cache is not None and cache.differentiable:
            raise ValueError(
                f"GPT2: return_intermediate gives the masks of one whole sequence, and not with a "
                f"{type(cache).__name__}; run one sequence without it"
            )
        visit = _with_capture if return_intermediate else _alone
        x, captured = self._through(tokens, visit, cache, planned_length)
        return x, captured if return_intermediate else None

    def _through(
        self, tokens: Int64[Tensor, "B N"], visit: Visit[Found], cache: Surroundings | None, planned_length: int | None
    ) -> tuple[Float[Tensor, "B N E"], list[Found]]:
        """What the output head reads, and what `visit` finds in each block on the way."""
        self._require_tokens(tokens, cache)
        x = self.wte(tokens)  # [B, N, E]
        if self.wpe is not None:
            x = x + self.wpe(positions(tokens.shape[1], cache, tokens.device))
        x, found = self.drop(x), []
        for layer, block in enumerate(self.h):
            step = partial(visit, block, cache=cache, layer=layer, planned_length=planned_length)
            if self.checkpointing and (cache is None or cache.differentiable) and torch.is_grad_enabled():
                step = recomputed(step, self.checkpointing)
            x, one = step(x)
            found.append(one)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.ln_f(x), found

    def widen(self, windows: Sequence[int]) -> None:
        """Gives the layers other windows, from the bottom to the top; no weight changes.

        Raises:
            ValueError: The model has no windows of its layers' own, or these are not one for each layer.
        """
        if not self.config.windows:
            raise ValueError("GPT2.widen: the model has no windows to change; make it with GPT2Config(windows=...)")
        self.config = replace(self.config, windows=tuple(windows))
        for module in self.modules():
            if isinstance(module, WindowedAttention):
                module.widen(self.config)

    def logits(self, x: Float[Tensor, "*B E"]) -> Float[Tensor, "*B V"]:
        """The output head on some of the features; padding tokens get minus infinity."""
        logits = F.linear(x, self.wte.weight)
        if self.config.known_tokens == self.config.vocab_size:
            return logits
        padding = torch.arange(self.config.vocab_size, device=x.device) >= self.config.known_tokens
        return logits.masked_fill(padding, -math.inf)

    def loss(self, x: Float[Tensor, "B N E"], targets: Int64[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Mean cross-entropy of `targets` by the features `x`; few tokens have logits at a time."""
        return linear_cross_entropy(x, self.wte.weight, targets, ignored=IGNORED_TARGET, known=self.config.known_tokens)

    def save(self, folder: str | Path) -> None:
        """Writes model.safetensors and config.json, which `GPT2.load` and transformers' GPT-2 read.

        Each file is written beside its place and renamed, so a crash leaves the old one or the new one whole.
        """
        weights.write(folder, self.config, self.state_dict())

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        context_size: int | None = None,
        vocab_size: int | None = None,
        sparse_config: SparseAttentionConfig | None = None,
        indexer: IndexerConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The model in a folder or a safetensors file, as saved here or by transformers, in float32.

        Args:
            context_size: Context to run at; beyond the saved one, the position table is repeated.
            vocab_size: Rows to pad the token table to (50304 suits GPUs); padded tokens are never predicted.
            sparse_config: Makes the attention sparse; None keeps what the file says.
            indexer: Makes every layer attend to the keys that an indexer chooses. Indexers that the file lacks begin
                at random, and must learn (`gossamer train`); those it has are kept, and must be of these sizes.

        Raises:
            FileNotFoundError: There are no weights at `source`.
            ValueError: They are damaged or no GPT-2's; the message names the file, the tensor and the fix.
        """
        config, state = weights.read(source)
        config, state = weights.resized(config, state, context_size=context_size, vocab_size=vocab_size)
        if sparse_config is not None:
            config = replace(config, use_sparse_attention=True, sparse_config=sparse_config)
        if indexer is not None:
            config, state = with_indexers(config, state, indexer)
        with torch.device("meta"):  # no time is spent on an initialisation that is about to be replaced
            model = cls(config)
        model.load_state_dict(state, assign=True)
        return model.to(device)

    def _require_indexers(self, return_intermediate: bool) -> None:
        if self.config.indexer is None or return_intermediate:
            raise ValueError(
                "GPT2: indexer_losses are of a model with GPT2Config(indexer=...), and without return_intermediate; "
                "leave one of them out"
            )

    def _require_tokens(self, tokens: Tensor, cache: Surroundings | None) -> None:
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"GPT2: tokens are {tokens.dtype} {list(tokens.shape)}; give int64 [batch, length]")
        end, context = tokens.shape[1], self.config.context_size
        if cache is not None:
            end = min(cache.length + end, cache.capacity)  # a packed row is longer than its documents
        if end > context:
            raise ValueError(
                f"GPT2: tokens reach position {end}, beyond context_size={context}; "
                "give fewer, or load the model with a larger context_size"
            )


Found = TypeVar("Found")
Visit = Callable[..., tuple[Tensor, Found]]
"""Goes through a block, (block, x, *, cache, layer, planned_length), and brings back x and what it found there."""


def _alone(block: TransformerBlock, x: Tensor, **place: Any) -> tuple[Tensor, None]:
    return block(x, **place), None


def _with_capture(block: TransformerBlock, x: Tensor, **place: Any) -> tuple[Tensor, Capture]:
    return block(x, True, **place)


def _with_loss(block: TransformerBlock, x: Tensor, **place: Any) -> tuple[Tensor, Float[Tensor, ""]]:
    """What its indexer learns from is taken within the block: nothing else of the layer outlives it."""
    x, seen = block(x, True, **place)
    return x, loss_of(block.attn.indexer, seen)  # type: ignore[bad-argument-type]


def _attention(config: GPT2Config, layer: int) -> SelfAttention:
    if config.indexer is not None:
        dropout, rotary = config.dropout, config.rotary
        return IndexedAttention(
            config.n_head, config.n_embed, config.indexer, dropout=dropout, bias=config.bias, rotary=rotary
        )
    if config.windows:
        return WindowedAttention(config, layer)
    return SparseAttention(config) if config.use_sparse_attention else CausalSelfAttention(config)
