"""`IndexedAttention`: self-attention over the keys that an indexer chooses for each query (DSA), in GPT-2's shape."""

from __future__ import annotations

from jaxtyping import Float, Int32
from torch import Tensor

from ..attention import attend
from ..config import IndexerConfig, RotaryConfig
from ..indexed import Selection, attend_indexed
from ..patterns import Causal
from .indexer import LightningIndexer
from .indexing import Indexing, Stage, attends_to_chosen, chosen, located
from .positions import positions
from .self_attention import SelfAttention
from .surroundings import Surroundings


class IndexedAttention(SelfAttention):
    """Causal self-attention whose queries see the `index_topk` keys that an indexer scores best, all heads the same.

    DeepSeek's sparse attention (arXiv 2512.02556) for models that have keys and values of their heads: beside the
    parameters of dense attention there are the `indexer`'s alone, so weights of a dense layer load with
    `strict=False`. Where no more keys than `index_topk` stand before a query, it is dense attention.

    >>> import torch
    >>> indexer = IndexerConfig(index_n_heads=2, index_head_dim=16, index_topk=8, qk_rope_head_dim=8)
    >>> layer = IndexedAttention(4, 64, indexer, n_kv_head=2)
    >>> out, seen = layer(torch.randn(1, 20, 64), return_intermediate=True)
    >>> seen.selection.indices.shape  # one choice for all heads
    torch.Size([1, 1, 20, 8])

    Raises:
        ValueError: `width` is no multiple of the heads, or `n_kv_head` no divisor of them.
    """

    def __init__(
        self,
        n_head: int,
        width: int,
        indexer: IndexerConfig,
        *,
        n_kv_head: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: RotaryConfig | None = None,
    ):
        super().__init__(n_head, width, n_kv_head=n_kv_head, dropout=dropout, bias=bias, rotary=rotary)
        self.stage: Stage = "sparse"
        """"sparse", or "warm_up": all keys are seen while the indexer learns where they are looked at."""
        self.indexer = LightningIndexer(width, width, indexer)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        return_intermediate: bool = False,
        *,
        cache: Surroundings | None = None,
        layer: int = 0,
        planned_length: int | None = None,
        selection: Selection | None = None,
        within: Int32[Tensor, "B 2"] | None = None,
    ) -> Float[Tensor, "B N E"] | tuple[Float[Tensor, "B N E"], Indexing]:
        """Attention of `x` to itself and, with a `cache`, to the tokens held there.

        Args:
            return_intermediate: Return (output, the keys that were seen and what the indexer learns from).
            cache: Holds keys, values and index keys of earlier calls; `x` goes on from there, as `layer`.
            planned_length: As other layers have it; what is chosen here does not depend on it.
            selection: The keys that each query sees, such as another layer has chosen; by default this one's indexer
                chooses where there are more than it may choose.
            within: Sequence b is its tokens `within[b, 0] … within[b, 1] - 1` alone: nobody sees what lies outside,
                which sees nothing. For training; beside a cache, its `padding` says it.

        Raises:
            ValueError: The stage is unknown, the tokens do not fit the cache, or `within` is given beside one.
        """
        within = located(cache, within, x.shape[1], x.device)
        q, k, v = self.project(x, cache)
        index = self.indexer.project(x, None, positions(x.shape[1], cache, x.device))
        if cache is not None:
            k, v, keys = cache.extend(layer, [k, v, index.k])
            index = index._replace(k=keys)
        if attends_to_chosen(self, self.stage) and selection is None:
            selection = chosen(self.indexer, index, within)
        dropout = self.dropout if self.training else 0.0
        if selection is None:
            mixed, lse = attend(q, k, v, Causal(), dropout=dropout, within=within, return_lse=True)
        else:
            mixed, lse = attend_indexed(q, k, v, selection, dropout=dropout, return_lse=True)
        out = self.merge(mixed)
        if not return_intermediate:
            return out
        return out, Indexing(selection, index, q.detach(), k.detach(), lse.detach(), q.shape[-1] ** -0.5, within)

    def pattern(self, length: int) -> Causal:
        """What may be chosen from."""
        return Causal()
