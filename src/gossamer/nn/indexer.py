"""`LightningIndexer`: a few narrow heads that score every key for every query, so that attention reads the best alone.

DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor, nn
from torch.nn.functional import linear

from ..config import IndexerConfig
from ..indexed import top_keys
from ..ops.boundary import own_dtypes
from ..patterns.base import require_integer
from ..selectors.quantized import hadamard
from .heads import split
from .positions import positions, rotated
from .surroundings import Surroundings


class Projected(NamedTuple):
    """What an indexer makes of tokens: a pair scores `sum_j weights[j] · relu(q[j] · k)`."""

    q: Float[Tensor, "B J N D"]
    k: Float[Tensor, "B N D"]
    weights: Float[Tensor, "B N J"]


def head_weights(projection: nn.Linear, x: Float[Tensor, "B N E"], shape: IndexerConfig) -> Float[Tensor, "B N J"]:
    """What each head's products count, divided by the roots of the width and of how many heads there are; of any sign.

    Projected in float32, or float64 of float64, in whatever dtype the model is and under autocast too: rounded to
    bfloat16, they would have one query in ten choose other keys. No gradient reaches `x`.
    """
    wide = torch.promote_types(projection.weight.dtype, torch.float32)
    with own_dtypes(x.device):
        made = linear(x.detach().to(wide), projection.weight.to(wide))
    return made * (shape.index_n_heads * shape.index_head_dim) ** -0.5


class LightningIndexer(nn.Module):
    """For each token the `index_topk` tokens up to itself that score highest; no gradient reaches what it is given.

    Its weights learn from `indexer_loss` alone. Parameters have the names and the layout of transformers' indexers,
    whose `state_dict` loads. The first `qk_rope_head_dim` features turn with the position, by halves unless
    `config.rotary` is interleaved: an indexer trained with one layout chooses other keys with the other, and nothing
    raises.

    >>> config = IndexerConfig(index_n_heads=2, index_head_dim=16, index_topk=3, qk_rope_head_dim=8)
    >>> indexer = LightningIndexer(32, 32, config)
    >>> indexer(torch.randn(1, 5, 32))[0, :2].tolist()
    [[0, -1, -1], [0, 1, -1]]

    DeepSeek-AI, DeepSeek-V3.2 (arXiv 2512.02556).

    Raises:
        ValueError: A width is no positive integer, or `config` is no IndexerConfig.
    """

    def __init__(self, width: int, query_width: int, config: IndexerConfig):
        """
        Args:
            width: Of the tokens, which keys and weights are made from.
            query_width: Of what queries are made from: of low-rank vectors, or of the tokens themselves.
        """
        super().__init__()
        for name, value in {"width": width, "query_width": query_width}.items():
            require_integer("LightningIndexer", name, value, least=1)
        if not isinstance(config, IndexerConfig):
            raise ValueError(f"LightningIndexer: config is {config!r}; give an IndexerConfig")
        self.config = config
        self.wq_b = nn.Linear(query_width, config.index_n_heads * config.index_head_dim, bias=False)
        self.wk = nn.Linear(width, config.index_head_dim, bias=False)
        self.k_norm = nn.LayerNorm(config.index_head_dim, eps=1e-6)
        self.weights_proj = nn.Linear(width, config.index_n_heads, bias=False)

    def queries(self, source: Float[Tensor, "B N R"], at: Int64[Tensor, "*B N"]) -> Float[Tensor, "B J N D"]:
        """Queries of each head, made from `source`, of tokens at these positions."""
        return self._placed(split(self.wq_b(source.detach()), self.config.index_n_heads), at)

    def keys(self, x: Float[Tensor, "B N E"], at: Int64[Tensor, "*B N"]) -> Float[Tensor, "B N D"]:
        """The key of each token, one for all heads. Autocast would leave a norm's result in float32, unlike queries."""
        made = self.wk(x.detach())
        return self._placed(self.k_norm(made).to(made.dtype)[:, None], at)[:, 0]

    def weights(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N J"]:
        """What each head's products count: as `head_weights`."""
        return head_weights(self.weights_proj, x, self.config)

    def project(
        self, x: Float[Tensor, "B N E"], source: Float[Tensor, "B N R"] | None, at: Int64[Tensor, "*B N"]
    ) -> Projected:
        """Queries, keys and weights of tokens at these positions; queries from `x` itself where `source` is None."""
        return Projected(self.queries(x if source is None else source, at), self.keys(x, at), self.weights(x))

    def choose(
        self,
        q: Float[Tensor, "B J Q D"],
        k: Float[Tensor, "B K D"],
        weights: Float[Tensor, "B Q J"],
        *,
        visible: Shaped[Tensor, "B Q"] | None = None,
    ) -> Int32[Tensor, "B Q n"]:
        """The keys that `top_keys` finds; n is `index_topk`, or all keys where they are fewer."""
        count = min(self.config.index_topk, k.shape[1])
        relu, precision = self.config.relu, self.config.precision
        return top_keys(q, k, weights, count, relu=relu, visible=visible, precision=precision)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        source: Float[Tensor, "B N R"] | None = None,
        *,
        cache: Surroundings | None = None,
        layer: int = 0,
    ) -> Int32[Tensor, "B N n"]:
        """For each token of `x` the chosen ones, ascending, -1 behind the last where fewer stand before it.

        Args:
            source: What queries are made from; by default `x`.
            cache: Holds the keys of earlier calls; `x` goes on from there, as `layer`. Count with `cache.advance`
                after all layers.

        Raises:
            ValueError: The tokens do not fit the cache, or it has padding.
        """
        if cache is not None and cache.padding is not None and any(cache.padding):
            raise ValueError(
                f"cache has padding {cache.padding}, which an indexer alone would choose; call an attention layer that "
                f"has an indexer, or give whole sequences"
            )
        q, k, weights = self.project(x, source, positions(x.shape[1], cache, x.device))
        if cache is not None:
            (k,) = cache.extend(layer, [k])
        return self.choose(q, k, weights)

    def _placed(self, x: Float[Tensor, "B H N D"], at: Int64[Tensor, "*B N"]) -> Float[Tensor, "B H N D"]:
        """Turned by position, and then by the Hadamard matrix where there is one."""
        turned = self.config.qk_rope_head_dim
        if turned:
            first, rest = x.split([turned, x.shape[-1] - turned], -1)
            x = torch.cat([rotated(first, at, self.config.rotary), rest], -1)
        return hadamard(x) if self.config.hadamard else x
