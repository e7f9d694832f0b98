"""`CompressedAttention`: a window and compressed entries in one softmax (CSA, HCA: DeepSeek-V4, arXiv 2606.19348)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ..attention import attend
from ..config.compressed import CSA, CompressedConfig
from ..indexed import attend_latent, merge_attention
from ..patterns import Causal, Window
from ..runs import attend_runs
from ..selectors.selection import Selection
from .compressor import EntryCompressor
from .entry_indexer import EntryIndexer, IndexedCompressor
from .heads import merged, split
from .indexing import Indexing
from .norms import normalised
from .partial_rotary import turned_last
from .recent_cache import RecentCache
from .whole_cache import WholeCache


class GroupedLinear(nn.Linear):
    """A linear layer for each group of features, whose weights lie one below the other.

    >>> GroupedLinear(6, 4, groups=3)(torch.zeros(2, 3, 6)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, width: int, rank: int, groups: int):
        super().__init__(width, groups * rank, bias=False)
        self.groups = groups

    def forward(self, input: Float[Tensor, "*B G E"]) -> Float[Tensor, "*B G R"]:
        """Each group's features through its own layer."""
        return torch.einsum("...gi,gri->...gr", input, self.weight.unflatten(0, (self.groups, -1)))


class CompressedCache:
    """What `CompressedAttention` holds: the window, all entries, and the tokens that later entries are made of."""

    def __init__(self) -> None:
        self.window, self.tail, self.entries = RecentCache(), RecentCache(), WholeCache()

    @property
    def seen(self) -> int:
        """Tokens of a sequence so far."""
        return self.window.seen

    @property
    def nbytes(self) -> int:
        """Memory that is taken."""
        return self.window.nbytes + self.tail.nbytes + self.entries.nbytes

    def pick(self, order: Tensor) -> None:
        """Goes on with the sequences `order` [B'] of those held, as beam search asks."""
        for part in (self.window, self.tail, self.entries):
            part.pick(order)


class CompressedAttention(nn.Module):
    """Causal self-attention to the last tokens as they are, and to entries that are runs of earlier ones.

    All query heads share one vector a token, or an entry, that is key and value at once. An entry is seen once all of
    its tokens are at the query or before it; with an indexer (CSA) a query sees those that score highest, without
    (HCA) all. Window, entries and a sink a head are one softmax. Values being turned by their positions, outputs are
    turned back by the query's. With `config.compress_rate` 0 there is a window alone.

    No gradient passes through the indexer's choice: it learns from a loss of its own. Parameters have the names of
    transformers' layers, whose weights load as they are.

    >>> from dataclasses import replace
    >>> from gossamer.config import IndexerConfig
    >>> small = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8,
    ...          "o_groups": 2, "o_lora_rank": 16, "sliding_window": 8}
    >>> indexer = IndexerConfig(index_n_heads=2, index_head_dim=16, qk_rope_head_dim=8, index_topk=4)
    >>> layer = CompressedAttention(replace(CSA, **small, indexer=indexer))
    >>> x, cache = torch.randn(1, 50, 64), CompressedCache()
    >>> in_pieces = torch.cat([layer(piece, cache=cache) for piece in x.split(9, dim=1)], dim=1)
    >>> torch.allclose(in_pieces, layer(x), atol=1e-5)
    True
    """

    def __init__(self, config: CompressedConfig = CSA):
        super().__init__()
        self.config = config
        heads, width = config.num_attention_heads, config.head_dim
        self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
        self.q_a_norm = nn.RMSNorm(config.q_lora_rank, config.norm_eps)
        self.q_b_proj = nn.Linear(config.q_lora_rank, heads * width, bias=False)
        self.kv_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.kv_norm = nn.RMSNorm(width, config.norm_eps)
        self.sinks = nn.Parameter(torch.zeros(heads))
        self.o_a_proj = GroupedLinear(heads // config.o_groups * width, config.o_lora_rank, config.o_groups)
        self.o_b_proj = nn.Linear(config.o_groups * config.o_lora_rank, config.hidden_size, bias=False)
        self.compressor = None
        if config.indexer is not None:
            self.compressor = IndexedCompressor(config, config.indexer)
        elif config.compress_rate:
            self.compressor = EntryCompressor(
                config.hidden_size, width, config.compress_rate, overlap=config.overlap,
                rotary=config.rotary, rotary_width=config.qk_rope_head_dim, eps=config.norm_eps,
            )  # fmt: skip

    @property
    def indexer(self) -> EntryIndexer | None:
        """What chooses the entries, where they are chosen."""
        return self.compressor.indexer if isinstance(self.compressor, IndexedCompressor) else None

    def forward(
        self, x: Float[Tensor, "B N E"], return_intermediate: bool = False, *, cache: CompressedCache | None = None
    ) -> Float[Tensor, "B N E"] | tuple[Float[Tensor, "B N E"], Indexing | None]:
        """Attention of `x` to itself and to the tokens of earlier calls with the same `cache`.

        Args:
            return_intermediate: Return (output, the entries that were chosen and what the indexer learns from: shares
                of one softmax over window, entries and sinks; None without an indexer).
        """
        past = 0 if cache is None else cache.seen
        at = torch.arange(past, past + x.shape[1], device=x.device)
        low = normalised(self.q_a_proj(x), self.q_a_norm)
        q = split(self.q_b_proj(low), self.config.num_attention_heads)
        q = self._turned(rms_norm(q, q.shape[-1:], eps=self.config.norm_eps), at)
        near = self._turned(normalised(self.kv_proj(x), self.kv_norm)[:, None], at)[:, 0]
        learns = return_intermediate and torch.is_grad_enabled()
        made = self._entries(x, past, cache, learns)
        if cache is not None:
            (near,) = cache.window.extend([near], self.config.sliding_window - 1)
        seen = None
        if self.indexer is None:
            out = self._over_all(q, near, made, at)
        else:
            with torch.set_grad_enabled(learns):
                index = self.indexer.project(x, low, made[1], past)
            chosen = self.indexer.choose(index, past)
            out, lse = self._over_chosen(q, near, made[0], chosen)
            looked = q.detach(), made[0][:, None].detach(), lse.detach()
            seen = Indexing(Selection(chosen), index, *looked, self.config.head_dim**-0.5)
        out = merged(self._turned(out, -at)).unflatten(-1, (self.config.o_groups, -1))
        out = self.o_b_proj(self.o_a_proj(out).flatten(2))
        return (out, seen) if return_intermediate else out

    def _turned(self, x: Tensor, at: Int64[Tensor, " N"]) -> Tensor:
        return turned_last(x, at, self.config.rotary, self.config.qk_rope_head_dim)

    def _entries(self, x: Tensor, past: int, cache: CompressedCache | None, learns: bool) -> list[Tensor]:
        """Entries so far, and with an indexer its own of the same tokens; [B, W, D] each."""
        if self.compressor is None:
            return []
        if cache is not None:
            (x,) = cache.tail.extend([x], self.compressor.held(past + x.shape[1]))
        made = [self.compressor(x, past)]
        if self.indexer is not None:
            with torch.set_grad_enabled(learns):
                made.append(self.indexer(x.detach(), past))
        return made if cache is None else cache.entries.extend(made)

    def _over_chosen(
        self, q: Tensor, near: Tensor, entries: Tensor, chosen: Int32[Tensor, "B N n"]
    ) -> tuple[Float[Tensor, "B H N D"], Float[Tensor, "B H N"]]:
        """(output, log-sum-exp): window and chosen entries are keys of one attention, entries behind tokens."""
        keys, queries = near.shape[1], q.shape[2]
        own = torch.arange(keys - queries, keys, device=q.device, dtype=torch.int32)[:, None]
        back = torch.arange(self.config.sliding_window - 1, -1, -1, device=q.device, dtype=torch.int32)
        window = (own - back).clamp(min=-1).expand(q.shape[0], -1, -1)  # [B, N, window]; -1 before the first
        both = torch.cat([window, torch.where(chosen < 0, -1, chosen + keys)], -1)
        latents = torch.cat([near, entries], 1)
        width = self.config.head_dim
        return attend_latent(q, latents, Selection(both), value_width=width, sinks=self.sinks, return_lse=True)

    def _over_all(
        self, q: Tensor, near: Tensor, made: list[Tensor], at: Int64[Tensor, " N"]
    ) -> Float[Tensor, "B H N D"]:
        """The window and every entry that is whole at the query, joined by their log-sum-exps."""
        near = near[:, None]
        parts = [attend(q, near, near, Causal() & Window(self.config.sliding_window), return_lse=True)]
        for entries in made:
            whole = ((at + 1) // self.config.compress_rate).to(torch.int32)[None]
            of_all = entries[:, None]
            parts.append(attend_runs(q, of_all, of_all, torch.zeros_like(whole), whole, return_lse=True))
        return merge_attention(parts, self.sinks)[0]
