"""`LatentAttention`: attention whose keys and values are made from one latent a token (MLA), of all keys or chosen."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

from ..attention import attend
from ..config import LatentConfig
from ..config.latent import Mode
from ..indexed import Selection, attend_indexed, attend_latent
from ..patterns import Causal
from .heads import merged, split
from .indexer import LightningIndexer
from .indexing import Indexing, Stage, all_places, attends_to_chosen, chosen, located
from .norms import normalised
from .positions import positions, rotated
from .surroundings import Surroundings

QUERIES_AT_ONCE = 256
"""Of those that choose all latents: a latent takes more bytes than so many numbers of it."""


class _Mixed(NamedTuple):
    """What attention gave, and the queries [B, H, Q, D] and keys [B, G, K, D] that were multiplied for it."""

    out: Tensor
    lse: Tensor
    q: Tensor
    k: Tensor


class LatentAttention(nn.Module):
    """Causal self-attention whose cache holds one latent a token for all heads (MLA, arXiv 2405.04434).

    Two modes give the same numbers. `"mha"` makes each head's keys and values from the latents; `"mqa"` moves that
    projection to queries and outputs, so that all heads read the latents themselves. With an indexer in `config` a
    query sees the `index_topk` keys that score best (DSA, arXiv 2512.02556), the same for all heads.

    Parameters have the names of DeepSeek's checkpoints and of transformers, so a layer's state dict loads as it is.

    >>> from gossamer.config import LatentConfig
    >>> from gossamer.nn import KVCache
    >>> layer = LatentAttention(LatentConfig(64, 4, 32, 16, 8, 8, 8))
    >>> x, cache, out = torch.randn(1, 20, 64), KVCache(20), []
    >>> with torch.no_grad():
    ...     for piece in x.split(5, dim=1):
    ...         out.append(layer(piece, mode="mqa", cache=cache))
    ...         cache.advance(5)
    >>> torch.allclose(torch.cat(out, 1), layer(x, mode="mha"), atol=1e-5), cache.nbytes  # 24 numbers a token
    (True, 1920)
    """

    def __init__(self, config: LatentConfig):
        super().__init__()
        self.config = config
        self.stage: Stage = "sparse"
        """"sparse", or "warm_up": all keys are seen while the indexer learns where they are looked at."""
        width, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        query_width = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(width, query_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, config.norm_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, query_width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(width, config.latent_width, bias=bias)
        self.kv_a_layernorm = nn.RMSNorm(config.kv_lora_rank, config.norm_eps)
        key_value = config.qk_nope_head_dim + config.v_head_dim
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, heads * key_value, bias=False)
        self.o_proj = nn.Linear(heads * config.v_head_dim, width, bias=bias)
        source = config.q_lora_rank or width
        self.indexer = None if config.indexer is None else LightningIndexer(width, source, config.indexer)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        return_intermediate: bool = False,
        *,
        mode: Mode | None = None,
        selection: Selection | None = None,
        cache: Surroundings | None = None,
        layer: int = 0,
        within: Int32[Tensor, "B 2"] | None = None,
    ) -> Float[Tensor, "B N E"] | tuple[Float[Tensor, "B N E"], Indexing]:
        """Attention of `x` to itself and, with a `cache`, to the tokens held there.

        Args:
            return_intermediate: Return (output, the keys that were seen and what the indexer learns from).
            mode: `"mha"` or `"mqa"`; None takes what multiplies less, by `LatentConfig.cheaper_mode`, and on a GPU
                `"mqa"` wherever keys are chosen.
            selection: The keys that each query sees, such as another layer has chosen. By default the layer's own
                indexer chooses where there are more than it may choose; without one, all up to the query are seen.
            cache: Holds latents and index keys of earlier calls; `x` goes on from there, as `layer`. Count with
                `cache.advance` after all layers.
            within: Sequence b is its tokens `within[b, 0] … within[b, 1] - 1` alone: nobody sees what lies outside,
                which sees nothing. For training; beside a cache, its `padding` says it.

        Raises:
            ValueError: The mode or the stage is unknown, the tokens do not fit the cache, or `within` is given beside
                one.
        """
        if mode not in (None, *get_args(Mode)):
            raise ValueError(f"LatentAttention: mode is {mode!r}; give 'mha', 'mqa', or None for the cheaper one")
        within = located(cache, within, x.shape[1], x.device)
        at = positions(x.shape[1], cache, x.device)
        source = self.query_source(x)
        latents, index = self.latents(x, at), None if self.indexer is None else self.indexer.project(x, source, at)
        if cache is not None:
            latents, *keys = cache.extend(layer, [latents] if index is None else [latents, index.k])
            index = index and index._replace(k=keys[0])
        if attends_to_chosen(self, self.stage) and selection is None and self.indexer is not None and index is not None:
            selection = chosen(self.indexer, index, within)
        if mode is None:
            mode = self._cheaper_mode(x, latents, selection)
        mixed = (self._mha if mode == "mha" else self._mqa)(self.queries(source, at), latents, selection, within)
        out = self.o_proj(merged(mixed.out))
        if not return_intermediate:
            return out
        seen = mixed.q.detach(), mixed.k.detach(), mixed.lse.detach()
        return out, Indexing(selection, index, *seen, self.config.softmax_scale, within)

    def _cheaper_mode(self, x: Tensor, latents: Tensor, selection: Selection | None) -> Mode:
        if selection is None:
            return self.config.cheaper_mode(x.shape[1], latents.shape[1])
        if x.is_cuda:  # in "mha" it would gather each head's own keys, where all heads read one latent
            return "mqa"
        return self.config.cheaper_mode(x.shape[1], latents.shape[1], selection.size)

    def query_source(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N R"]:
        """What queries, and an indexer's queries, are made from: the normalised low-rank vectors, or `x` itself."""
        if self.config.q_lora_rank is None:
            return x
        return normalised(self.q_a_proj(x), self.q_a_layernorm)

    def queries(self, source: Float[Tensor, "B N R"], at: Int64[Tensor, "*B N"]) -> Float[Tensor, "B H N D"]:
        """Queries of each head: `qk_nope_head_dim` features that stay, and `qk_rope_head_dim` turned ones."""
        project = self.q_proj if self.config.q_lora_rank is None else self.q_b_proj
        q = split(project(source), self.config.num_attention_heads)
        still, turned = q.split([self.config.qk_nope_head_dim, self.config.qk_rope_head_dim], -1)
        return torch.cat([still, rotated(turned, at, self.config.rotary)], -1)

    def latents(self, x: Float[Tensor, "B N E"], at: Int64[Tensor, "*B N"]) -> Float[Tensor, "B N L"]:
        """What is held of a token: its normalised latent, and the turned features of its key."""
        low, turned = self.kv_a_proj_with_mqa(x).split([self.config.kv_lora_rank, self.config.qk_rope_head_dim], -1)
        turned = rotated(turned[:, None], at, self.config.rotary)[:, 0]
        return torch.cat([normalised(low, self.kv_a_layernorm), turned], -1)

    def _mha(self, q: Tensor, latents: Tensor, selection: Selection | None, within: Tensor | None) -> _Mixed:
        config = self.config
        low, turned = latents.split([config.kv_lora_rank, config.qk_rope_head_dim], -1)
        made = split(self.kv_b_proj(low), config.num_attention_heads)  # [B, H, K, ·]
        still, v = made.split([config.qk_nope_head_dim, config.v_head_dim], -1)
        k = torch.cat([still, turned[:, None].expand(*still.shape[:3], -1)], -1)
        if selection is None:
            out, lse = attend(q, k, v, Causal(), scale=config.softmax_scale, within=within, return_lse=True)
        else:
            out, lse = attend_indexed(q, k, v, selection, scale=config.softmax_scale, return_lse=True)
        return _Mixed(out, lse, q, k)

    def _mqa(self, q: Tensor, latents: Tensor, selection: Selection | None, within: Tensor | None) -> _Mixed:
        config, rank = self.config, self.config.kv_lora_rank
        weight = self.kv_b_proj.weight.unflatten(0, (config.num_attention_heads, -1))  # [H, ·, kv_lora_rank]
        to_key, to_value = weight.split([config.qk_nope_head_dim, config.v_head_dim], 1)
        still, turned = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], -1)
        q = torch.cat([torch.einsum("bhqd,hdl->bhql", still, to_key), turned], -1)
        k, scale = latents[:, None], config.softmax_scale
        if selection is not None:
            out, lse = attend_latent(q, latents, selection, value_width=rank, scale=scale, return_lse=True)
        elif q.is_cuda:  # its kernels for all keys are not as wide as latents
            out, lse = self._all_latents(q, latents, within)
        else:
            out, lse = attend(q, k, k[..., :rank], Causal(), scale=scale, within=within, return_lse=True)
        return _Mixed(torch.einsum("bhql,hdl->bhqd", out, to_value), lse, q, k)

    def _all_latents(self, q: Tensor, latents: Tensor, within: Tensor | None) -> tuple[Tensor, Tensor]:
        """(out, lse) over all latents up to each query, which some queries at a time choose by their numbers."""
        rank, scale, parts = self.config.kv_lora_rank, self.config.softmax_scale, []
        queries, before = q.shape[2], latents.shape[1] - q.shape[2]
        places, outside = all_places(latents.shape[1], queries, within, q.device)
        if outside is not None:
            q = q.masked_fill(outside[..., None], 0.0)  # they choose too, and what comes of it is left out
        for first in range(0, max(queries, 1), QUERIES_AT_ONCE):
            part = q[:, :, first : first + QUERIES_AT_ONCE]
            seen = before + first + part.shape[2]
            every = Selection(places[:, None, :seen].expand(len(q), part.shape[2], -1), causal=True)
            parts.append(attend_latent(part, latents[:, :seen], every, value_width=rank, scale=scale, return_lse=True))
        out, lse = (torch.cat(each, 2) for each in zip(*parts, strict=True))
        if outside is not None:
            out, lse = out.masked_fill(outside[..., None], 0.0), lse.masked_fill(outside, -torch.inf)
        return out, lse
