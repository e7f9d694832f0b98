"""The dropout mask: a function of its place alone, with the statistics of independent draws."""

import pytest
import torch

from gossamer.kernels.dropout import keep_factor


def mask(seed: int, probability: float = 0.5, size: int = 500, streams: int = 4) -> torch.Tensor:
    return keep_factor(probability, seed, torch.arange(streams), torch.arange(size), torch.arange(size))


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_it_is_zero_with_the_probability_and_keeps_the_mean(probability: float) -> None:
    keep = mask(7, probability)
    assert keep.dtype == torch.float32 and keep.shape == (4, 500, 500)
    assert set(keep.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - probability)).item()}
    deviation = (probability * (1 - probability) / keep.numel()) ** 0.5
    assert abs((keep == 0).double().mean().item() - probability) <= 5 * deviation


def test_rows_columns_and_heads_are_alike() -> None:
    """No place is dropped more often than chance allows: 5 standard deviations over a few thousand sums."""
    dropped = (mask(3) == 0).double()
    for axes, draws in (((0, 1), 2000), ((0, 2), 2000), ((1, 2), 250_000)):
        assert ((dropped.mean(axes) - 0.5).abs() < 5 * 0.5 / draws**0.5).all()


@pytest.mark.parametrize("shift", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 1, -1), (1, 1, 0), (2, 7, 64)])
def test_neighbours_are_independent(shift: tuple[int, int, int]) -> None:
    signs = torch.where(mask(11) == 0, 1.0, -1.0)
    correlation = (signs * signs.roll(shift, (0, 1, 2))).mean().item()
    assert abs(correlation) < 5 / signs.numel() ** 0.5


@pytest.mark.parametrize("seeds", [(0, 1), (1, 2), (5, 2**32 + 5), (2**61, 2**61 + 1), (0, 2**32)], ids=str)
def test_other_seeds_are_other_draws(seeds: tuple[int, int]) -> None:
    a, b = (torch.where(mask(seed) == 0, 1.0, -1.0) for seed in seeds)
    assert abs((a * b).mean().item()) < 5 / a.numel() ** 0.5


def test_a_part_is_the_part_of_the_whole() -> None:
    """However a plan is cut into tiles, and wherever decoding stands."""
    whole = keep_factor(0.3, 5, torch.arange(6), torch.arange(-20, 80), torch.arange(100))
    streams, q, k = torch.tensor([4, 1]), torch.tensor([3, 50, 7]), torch.tensor([99, 0])
    part = keep_factor(0.3, 5, streams, q, k)
    assert torch.equal(part, whole[streams][:, q + 20][:, :, k])


def test_nothing_is_drawn_from_torch_s_generator() -> None:
    state = torch.get_rng_state()
    assert torch.equal(mask(1), mask(1))
    assert torch.equal(state, torch.get_rng_state())
