"""Rotation by position: relative, without change of length, and in step with a cache."""

from collections.abc import Callable

import pytest
import torch

from gossamer.config import RotaryConfig, YarnConfig
from gossamer.nn.cache import KVCache
from gossamer.nn.positions import positions, rates, rotated


def test_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 3, 1, 16, dtype=torch.float64)

    def product(at: int, other: int) -> torch.Tensor:
        return (rotated(q, torch.tensor([at])) * rotated(k, torch.tensor([other]))).sum(-1)

    torch.testing.assert_close(product(1007, 1000), product(7, 0))
    assert not torch.allclose(product(7, 0), product(0, 7))


def test_lengths_stay_and_the_first_position_changes_nothing() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    turned = rotated(x, torch.arange(5))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])


def test_it_is_the_published_formula() -> None:
    """Against complex numbers: feature i and i + D/2 as one number, times e^(i·position·rate)."""
    x, at = torch.randn(1, 2, 6, 10, dtype=torch.float64), torch.arange(6) * 31
    numbers = torch.complex(x[..., :5], x[..., 5:])
    rates = torch.tensor([10_000 ** (-2 * i / 10) for i in range(5)], dtype=torch.float64)
    turned = numbers * torch.polar(torch.ones(6, 5, dtype=torch.float64), at[:, None] * rates)
    torch.testing.assert_close(rotated(x, at), torch.cat([turned.real, turned.imag], dim=-1))


def test_far_positions_keep_their_meaning_in_half_precision() -> None:
    x, at = torch.randn(1, 1, 1, 64, dtype=torch.float64), torch.tensor([32_000])
    found = rotated(x.bfloat16(), at).double()
    torch.testing.assert_close(found, rotated(x.bfloat16().double(), at), rtol=0, atol=0.05)


def test_positions_go_on_from_a_cache_and_skip_its_padding() -> None:
    device = torch.device("cpu")
    assert positions(3, KVCache(8), device).tolist() == [0, 1, 2]
    padded = KVCache(8, padding=(0, 2))
    assert positions(3, padded, device).tolist() == [[0, 1, 2], [0, 0, 0]]
    padded.advance(3)
    assert positions(2, padded, device).tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize("heads", [1, 3])
def test_each_sequence_turns_by_its_own_positions(heads: int) -> None:
    x, at = torch.randn(2, heads, 4, 6), torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])
    both = rotated(x, at)
    for row in range(2):
        torch.testing.assert_close(both[row : row + 1], rotated(x[row : row + 1], at[row]))


def test_neighbours_turn_as_halves_do_in_their_own_order() -> None:
    x, at = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.arange(5) * 17
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    found = rotated(x, at, RotaryConfig(interleaved=True))
    torch.testing.assert_close(found[..., order], rotated(x[..., order], at), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mscale_all_dim", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("factor", [1.0, 4.0, 40.0])
def test_yarn_is_that_of_transformers(factor: float, mscale_all_dim: float) -> None:
    from transformers import DeepseekV32Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"factor": factor, "original_max_position_embeddings": 4096, "mscale_all_dim": mscale_all_dim}
    config = DeepseekV32Config(
        qk_rope_head_dim=64,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10_000.0, "mscale": 1.0, **settings},
        max_position_embeddings=int(4096 * factor),
    )
    theirs, length = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    yarn = YarnConfig(**settings)
    found = rates(64, RotaryConfig(yarn=yarn), torch.float32, torch.device("cpu"))
    torch.testing.assert_close(found, theirs)
    assert yarn.length_factor == pytest.approx(length)
    x, at = torch.randn(1, 1, 3, 64, dtype=torch.float64), torch.tensor([0, 5, 100])
    turned = rotated(x, at, RotaryConfig(yarn=yarn))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1) * length)


def test_a_ramp_without_length_is_a_step() -> None:
    yarn = YarnConfig(factor=8, original_max_position_embeddings=32, beta_fast=1.001, beta_slow=1.0)
    found = rates(8, RotaryConfig(yarn=yarn), torch.float64, torch.device("cpu"))
    plain = rates(8, RotaryConfig(), torch.float64, torch.device("cpu"))
    assert set((plain / found).round(decimals=9).tolist()) == {1.0, 8.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotaryConfig(theta=1.0), "RotaryConfig: theta is 1.0; give a number above 1"),
        (lambda: RotaryConfig(interleaved=1), "interleaved is 1; give True or False"),
        (lambda: RotaryConfig(yarn=4.0), "yarn is 4.0; give a YarnConfig"),
        (lambda: YarnConfig(0.5, 4096), "YarnConfig: factor is 0.5; give 1 or more"),
        (lambda: YarnConfig(4, 0), "original_max_position_embeddings is 0"),
        (lambda: YarnConfig(4, 4096, beta_fast=0.5), "beta_fast is 0.5; give over 1.0"),
        (lambda: YarnConfig(4, 4096, mscale=-1), "mscale is -1; give 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
