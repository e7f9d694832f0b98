"""The loss of a language model whose logits are too many to hold."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def chunked_cross_entropy(
    x: Float[Tensor, "B N E"],
    targets: Int64[Tensor, "B N"],
    head: Callable[[Float[Tensor, "R E"]], Float[Tensor, "R V"]],
    *,
    ignored: int = -1,
    rows: int = 1024,
) -> Float[Tensor, ""]:
    """Mean cross-entropy (in nats) of `head(x)`, of which only `rows` tokens are held at a time.

    Logits are made again in the backward. Targets equal to `ignored` are left out of the mean, which is 0
    where all are. It is taken in float32, or in float64 where the logits are.

    >>> uniform, targets = torch.zeros(1, 5, 4), torch.zeros(1, 5, dtype=torch.int64)
    >>> round(chunked_cross_entropy(uniform, targets, torch.nn.Identity()).item(), 4)  # log 4
    1.3863
    """

    def summed(x: Float[Tensor, "R E"], targets: Int64[Tensor, " R"]) -> Float[Tensor, ""]:
        logits = head(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")

    chunks = zip(x.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True)
    sums = [checkpoint(summed, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack(sums).sum() / (targets != ignored).sum().clamp(min=1)
