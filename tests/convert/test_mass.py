"""Kept mass against the formula in float64, whose n×n matrix these lengths allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer import Causal, RandomBlocks, Sinks, Strided, Window
from gossamer.convert.mass import DenseAttention, attend_densely, kept_mass
from gossamer.patterns import Pattern

CANDIDATES: tuple[Pattern, ...] = (
    Causal() & Window(5),
    Causal() & (Window(16) | Sinks(4)),
    Causal() & Strided(10),
    Window(9),  # beyond the diagonal dense attention has no mass to keep
    Causal() & RandomBlocks(8, 1, seed=0),
    Causal(),
)
SETTINGS = {
    "plain": {},
    "window": {"window": 20},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 3.0, 0.0])},
    "all": {"window": 7, "softcap": 2.0, "sinks": torch.tensor([0.5, -1.0, 3.0, 0.0]), "scale": 0.7},
}


def tensors(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """q of 4 heads over k and v of 2, with scores of a few units."""
    generator = torch.Generator().manual_seed(0)
    q = 2 * torch.randn(2, 4, length, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, length, 8, generator=generator)
    return q, k, v


def probabilities(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """[B, H, N, N + 1] in float64: dense attention by its formula, what a sink takes in the last column."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q.shape[-1] ** -0.5 if scale is None else scale) * q @ k.mT
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    n = q.shape[2]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    hidden = (distance < 0) | (distance >= (window or n))
    sink = torch.full((q.shape[1],), -torch.inf) if sinks is None else sinks
    column = sink.double()[None, :, None, None].expand(q.shape[0], -1, n, 1)
    return torch.cat([scores.masked_fill(hidden, -torch.inf), column], dim=-1).softmax(-1)


def kept_by_formula(dense: Tensor, candidate: Pattern) -> Tensor:
    mask = torch.from_numpy(candidate.dense_mask(dense.shape[2]))
    return (dense[..., :-1] * mask).sum(-1).mean((0, 2)) + dense[..., -1].mean((0, 2))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("length", "tile"), [(50, 16), (32, 8), (50, 512), (1, 16)])
def test_the_kept_mass_is_that_of_the_formula(setting: str, length: int, tile: int) -> None:
    q, k, v = tensors(length)
    _, seen = attend_densely(q, k, v, **SETTINGS[setting])
    dense = probabilities(q, k, **SETTINGS[setting])
    expected = torch.stack([kept_by_formula(dense, candidate) for candidate in CANDIDATES], dim=1)
    torch.testing.assert_close(kept_mass(seen, CANDIDATES, tile=tile).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_output_is_dense_attention_s(setting: str) -> None:
    q, k, v = tensors(50)
    out, _ = attend_densely(q, k, v, **SETTINGS[setting])
    weights = probabilities(q, k, **SETTINGS[setting])[..., :-1]
    torch.testing.assert_close(out.double(), weights @ v.double().repeat_interleave(2, dim=1), atol=1e-5, rtol=1e-5)


def test_dense_attention_keeps_all_and_a_part_keeps_less() -> None:
    q, k, v = tensors(50)
    _, seen = attend_densely(q, k, v, sinks=SETTINGS["sinks"]["sinks"])
    kept = kept_mass(seen, CANDIDATES)
    torch.testing.assert_close(kept[:, -1], torch.ones(4))
    assert (kept[:, :3] < 0.999).all()


def test_a_layer_s_own_window_is_all_of_its_mass() -> None:
    q, k, v = tensors(50)
    _, seen = attend_densely(q, k, v, window=5)
    torch.testing.assert_close(kept_mass(seen, [Causal() & Window(5)]), torch.ones(4, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_is_summed_in_float32(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in tensors(50))
    _, seen = attend_densely(q, k, v)
    kept = kept_mass(seen, CANDIDATES, tile=16)
    assert kept.dtype == torch.float32
    dense = probabilities(q, k)
    expected = torch.stack([kept_by_formula(dense, candidate) for candidate in CANDIDATES], dim=1)
    torch.testing.assert_close(kept.double(), expected, atol=1e-5, rtol=1e-5)


class Sizes(TorchDispatchMode):
    """Remembers the largest result of any operation."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_nothing_of_all_pairs_is_ever_made() -> None:
    length, tile = 1024, 64
    q, k, v = tensors(length)
    _, seen = attend_densely(q, k, v)
    with Sizes() as sizes:
        kept_mass(seen, CANDIDATES, tile=tile)
    assert sizes.largest <= max(len(CANDIDATES), q.shape[0] * q.shape[1]) * tile**2
    assert sizes.largest < length**2


def test_a_cache_is_refused() -> None:
    q, k, v = tensors(8)
    with pytest.raises(ValueError, match="8 keys; give a whole sequence"):
        attend_densely(q[:, :, :3], k, v)


def test_the_check_would_see_a_wrong_log_sum_exp() -> None:
    q, k, v = tensors(50)
    _, seen = attend_densely(q, k, v)
    wrong = DenseAttention(seen.q, seen.k, seen.lse + 0.1, seen.scale)
    assert np.abs(kept_mass(wrong, [Causal()]).numpy() - 1).min() > 0.05
