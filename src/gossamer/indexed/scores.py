"""`index_scores` and `attention_mass`: what an index, and what attention, makes of the keys that were chosen."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..inputs import autocast, check_attention, check_backend, check_kinds, check_scale
from ..ops import chosen as _operators  # noqa: F401  registers the operators
from ..selectors.selection import Selection
from .checks import check_selection, check_some_keys
from .top_keys import check_index


def index_scores(
    q: Float[Tensor, "B J Q D"],
    k: Float[Tensor, "B K D"],
    weights: Float[Tensor, "B Q J"],
    selection: Selection,
    *,
    relu: bool = True,
    backend: str | None = None,
) -> Float[Tensor, "B Q n"]:
    """An index's scores at the chosen keys, `sum_j weights[j] · relu(q[j] · k)`; minus infinity where none counts.

    A place counts nothing where its number is no key's, where the key is hidden, and where the key stands at an
    earlier place already: a softmax of the scores is one over the chosen keys. Gradients reach q, k and the weights,
    and are zero where a product is not positive. Float32, or float64 of float64. The same inputs give the same bits,
    gradients too. Memory is that of a block of queries, and of the scores themselves.

    >>> q, k = torch.ones(1, 1, 1, 1), torch.tensor([[[2.0], [3.0], [-1.0]]])
    >>> index_scores(q, k, torch.full((1, 1, 1), 0.5), Selection(torch.tensor([[[1, 0, 2, 1, -1]]])))
    tensor([[[1.5000, 1.0000, 0.0000,   -inf,   -inf]]])

    Args:
        q: Of J index heads.
        k: One key for all heads.
        weights: Float32 (float64 beside float64), of any sign: what each head's product counts.
        selection: Single keys, one choice for all heads.
        relu: Whether products below zero count as zero.
        backend: "triton" or "tiled"; by default the first that accepts the problem.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.

    Paper: DeepSeek-AI, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models" (arXiv:2512.02556).
    """
    check_kinds({"q": q, "k": k, "weights": weights})
    q, k, _ = autocast(q, k, k)
    check_index(q, k, weights)
    _check_choice(selection, q, k[:, None])
    check_backend(backend)
    chosen = selection.indices, selection.mask, bool(selection.causal)
    return torch.ops.gossamer.index_scores(q, k, weights, *chosen, bool(relu), backend)


@torch.no_grad()
def attention_mass(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    lse: Float[Tensor, "B H Q"],
    selection: Selection,
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> Float[Tensor, "B Q n"]:
    """Which share of a query's attention, summed over heads, goes to each chosen key; the shares of a query sum to 1.

    The probabilities are `exp(scale · q · k - lse)`, summed over heads and divided by their sum over the chosen keys:
    so the log-sum-exp may be of those keys alone or of all, with or without sinks, and decides how much each head
    counts. Zero where no key counts, told as `index_scores` does, and for a query that sees nothing. Float32, or
    float64 of float64. No gradient passes. Memory is that of a block of queries and of the shares themselves; of
    chosen latents on Hopper, of the shares that each 64 heads make too.

    >>> q, k = torch.zeros(1, 2, 1, 4), torch.zeros(1, 1, 3, 4)
    >>> attention_mass(q, k, torch.zeros(1, 2, 1), Selection(torch.tensor([[[2, 0, 2, -1]]])))
    tensor([[[0.5000, 0.5000, 0.0000, 0.0000]]])

    Args:
        lse: The natural log-sum-exp that attention returned.
        selection: Single keys, one choice for all heads.
        scale: Factor on the scores, as attention had it; 1/sqrt(D) by default.
        backend: "triton", "tiled", or of latents 576 wide "hopper"; by default the first that accepts the problem.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.

    Paper: DeepSeek-AI, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models" (arXiv:2512.02556).
    """
    check_kinds({"q": q, "k": k, "lse": lse})
    q, k, _ = autocast(q, k, k)
    check_attention(q, k, k)
    _check_choice(selection, q, k)
    if lse.shape != q.shape[:3] or not lse.is_floating_point() or lse.device != q.device:
        raise ValueError(
            f"lse is {lse.dtype} {list(lse.shape)} on {lse.device}; give the log-sum-exp {list(q.shape[:3])} that "
            f"attention returned, on {q.device}"
        )
    check_scale(scale)
    check_backend(backend)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    chosen = selection.indices, selection.mask, bool(selection.causal)
    lse = lse.to(torch.promote_types(q.dtype, torch.float32))
    return torch.ops.gossamer.attention_mass(q, k, lse, *chosen, scale, backend)


def _check_choice(selection: Selection, q: Tensor, k: Tensor) -> None:
    check_some_keys(k, q)
    check_selection(selection, q, k)
    if selection.block_size != 1:
        raise ValueError(f"block_size is {selection.block_size}; give a selection of single keys")
    if selection.indices.shape[1] != 1:
        raise ValueError(
            f"indices holds {selection.indices.shape[1]} choices for each query; give one for all heads, [B, Q, n]"
        )
