"""`indexed_attention`: `attend_indexed` under the names and in the layout of transformers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ...indexed import Selection, attend_indexed


def indexed_attention(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K Dv"],
    selection: Selection,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "B Q H Dv"]:
    """Softmax attention of each query over the keys of `selection`, and over no others; gradients reach all inputs.

    It is `gossamer.indexed.attend_indexed` as transformers calls attention; a message about `q`, `k`, `v` or `scale`
    means `query`, `key`, `value` or `scaling`.

    >>> import torch
    >>> q = k = v = torch.randn(1, 2, 6, 8)
    >>> chosen = torch.tensor([[[0, -1]] * 6])  # every query sees key 0 alone
    >>> torch.equal(indexed_attention(q, k, v, Selection(chosen))[0, 5], v[0, :, 0])
    True

    Args:
        scaling: Factor on the scores; 1/sqrt(D) by default.
        dropout: Probability that a pair is dropped, the others scaled up; drawn from torch's generator at each call.
        softcap: Scores become `softcap · tanh(score / softcap)`.
        sinks: One logit a head that joins the softmax's denominator only.

    Raises:
        ValueError: Shapes, dtypes or settings that do not fit; the message names the argument and the fix.
    """
    out = attend_indexed(query, key, value, selection, scale=scaling, dropout=dropout, softcap=softcap, sinks=sinks)
    return out.transpose(1, 2)
