"""`attend_indexed` and `attend_latent`: softmax attention of each query over the keys that were chosen for it."""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from ..inputs import autocast, check_attention, check_backend, check_kinds, check_scale
from ..ops import indexed as _operators  # noqa: F401  registers the operator
from ..selectors.selection import Selection
from .checks import check_selection, check_settings, check_sinks, check_some_keys


@overload
def attend_indexed(
    q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, scale: float | None = ..., softcap: float | None = ...,
    sinks: Tensor | None = ..., dropout: float = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend_indexed(
    q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, scale: float | None = ..., softcap: float | None = ...,
    sinks: Tensor | None = ..., dropout: float = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attend_indexed(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B G K D"],
    v: Float[Tensor, "B G K Dv"],
    selection: Selection,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    dropout: float = 0.0,
    return_lse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "B H Q Dv"] | tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]:
    """Softmax attention of each query over the keys of `selection`, and over no others.

    G divides H: each key head serves H/G query heads. A key that is chosen twice counts once. Gradients reach q, k, v
    and the sinks, also through the log-sum-exp; none passes through the choice. A query that sees nothing gives zeros
    and log-sum-exp minus infinity, or its sink. Memory is that of a block of queries, never of all pairs. The same
    inputs give the same bits, gradients too, and nothing waits for a device.

    >>> q = k = v = torch.randn(1, 2, 6, 8)
    >>> chosen = torch.tensor([[[0, -1]] * 6])  # every query sees key 0 alone
    >>> torch.equal(attend_indexed(q, k, v, Selection(chosen))[0, :, 5], v[0, :, 0])
    True

    Args:
        scale: Factor on the scores; 1/sqrt(D) by default.
        softcap: Scores become `softcap · tanh(score / softcap)`.
        sinks: One logit a head that joins the softmax's denominator only.
        dropout: Probability that a pair is dropped, the others scaled up; drawn from torch's generator at each call.
        return_lse: Also return the natural log-sum-exp of the scores (sinks included), float32, or float64 for
            float64.
        backend: "hopper", "blocks", "triton" or "tiled"; by default the first that accepts the problem. On a GPU,
            "blocks" takes 256 queries or more that choose blocks of 16, 32 or 64 keys, and a few GiB of scratch.

    Raises:
        ValueError: Shapes, dtypes, devices or settings that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.

    Paper: DeepSeek-AI, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models" (arXiv:2512.02556).
    """
    check_kinds({"q": q, "k": k, "v": v}, {"sinks": sinks})
    q, k, v = autocast(q, k, v)
    check_attention(q, k, v)
    check_some_keys(k, q)
    check_selection(selection, q, k)
    check_sinks(sinks, q)
    check_scale(scale)
    check_settings(dropout, softcap)
    check_backend(backend)
    seed = torch.randint(2**62, (1,), device=q.device) if dropout else None
    settings = v.shape[-1], _scale(scale, q), float(softcap or 0.0), float(dropout), backend
    out, lse = torch.ops.gossamer.attend_indexed(q, k, v, sinks, seed, *_chosen(selection), *settings)
    return (out, lse) if return_lse else out


@overload
def attend_latent(
    q: Tensor, latents: Tensor, selection: Selection, *, value_width: int, scale: float | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def attend_latent(
    q: Tensor, latents: Tensor, selection: Selection, *, value_width: int, scale: float | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def attend_latent(
    q: Float[Tensor, "B H Q D"],
    latents: Float[Tensor, "B K D"],
    selection: Selection,
    *,
    value_width: int,
    scale: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "B H Q Dv"] | tuple[Float[Tensor, "B H Q Dv"], Float[Tensor, "B H Q"]]:
    """Indexed attention of all heads to one latent a token, which is the key, and whose leading columns are the value.

    It equals `attend_indexed` with `k = latents[:, None]` and `v = k[..., :value_width]`, whose gradients both reach
    the latents. In multi-head latent attention D is 576, of which 512 are the value. Selection, sinks, log-sum-exp and
    determinism are as there.

    >>> q, latents = torch.randn(1, 4, 6, 24), torch.randn(1, 6, 24)
    >>> chosen = Selection(torch.tensor([[[0]] * 6]))
    >>> out = attend_latent(q, latents, chosen, value_width=16, scale=0.1)
    >>> torch.equal(out[0, 3, 5], latents[0, 0, :16])
    True

    Args:
        value_width: Leading columns of a latent that are its value.
        scale: Factor on the scores; 1/sqrt(D) by default, which is not that of a model whose own heads are narrower
            than its latents.
        sinks: One logit a head that joins the softmax's denominator only.
        return_lse: Also return the natural log-sum-exp of the scores, sinks included.
        backend: "hopper", "triton" or "tiled"; by default the first that accepts the problem.

    Raises:
        ValueError: Shapes, dtypes, devices or settings that do not fit; the message names the argument and the fix.
        Unsupported: No backend accepts the problem; the message gives each one's reason.

    Paper: DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model"
        (arXiv:2405.04434).
    """
    check_kinds({"q": q, "latents": latents}, {"sinks": sinks})
    if latents.ndim != 3:
        raise ValueError(f"latents has shape {tuple(latents.shape)}; give [batch, length, width]")
    q, latents, _ = autocast(q, latents, latents)
    k = latents[:, None]
    check_attention(q, k, k)
    check_some_keys(k, q)
    if isinstance(value_width, bool) or not isinstance(value_width, int) or not 1 <= value_width <= k.shape[3]:
        raise ValueError(f"value_width is {value_width!r}; give an integer from 1 to the {k.shape[3]} of a latent")
    check_selection(selection, q, k)
    check_sinks(sinks, q)
    check_scale(scale)
    check_backend(backend)
    settings = value_width, _scale(scale, q), 0.0, 0.0, backend
    out, lse = torch.ops.gossamer.attend_indexed(q, k, None, sinks, None, *_chosen(selection), *settings)
    return (out, lse) if return_lse else out


def _chosen(selection: Selection) -> tuple[Tensor, Tensor | None, int, bool]:
    """The selection as operators take it."""
    return selection.indices, selection.mask, selection.block_size, bool(selection.causal)


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if scale is None else float(scale)
