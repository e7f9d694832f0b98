"""The gate lets right attention through and names what is wrong with the rest."""

from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gossamer.attention import attend
from gossamer.bench.gate import Trial, fault, plain_attention, visible_pairs
from gossamer.patterns import Causal, PerHead, Strided, Window

WINDOW = Causal() & Window(32)
SDPA = partial(scaled_dot_product_attention, is_causal=True)


@pytest.fixture
def trial() -> Trial:
    return Trial(length=97, heads=3, width=16, dtype=torch.float32, device=torch.device("cpu"))


def test_the_dense_kernel_passes_as_causal(trial):
    assert fault(SDPA, Causal(), trial) is None


@pytest.mark.parametrize("pattern", [WINDOW, PerHead([(WINDOW, 2), (Causal() & Strided(10), 1)])], ids=str)
def test_sparse_attention_passes_as_its_own_pattern(pattern, trial):
    assert fault(partial(attend, pattern=pattern), pattern, trial) is None


def test_half_precision_is_held_against_plain_attention_in_half_precision(trial):
    half = Trial(trial.length, trial.heads, trial.width, torch.bfloat16, trial.device)
    assert fault(partial(attend, pattern=WINDOW), WINDOW, half) is None


@pytest.mark.parametrize(("size", "verb", "key"), [(31, "sees", 0), (33, "misses", 0)])
def test_a_window_that_is_one_key_off_is_named(size, verb, key, trial):
    found = fault(partial(attend, pattern=WINDOW), Causal() & Window(size), trial)
    pairs = 3 * (97 - min(size, 32))
    assert found == f"{pairs} wrong pairs; first: head 0, query {min(size, 32)} {verb} key {key}"


def test_a_leak_from_the_future_is_named(trial):
    found = fault(scaled_dot_product_attention, Causal(), trial)
    assert "head 0, query 0 sees key 1" in found


def test_wrong_numbers_over_the_right_pairs_are_named(trial):
    found = fault(lambda q, k, v: 1.001 * SDPA(q, k, v), Causal(), trial)
    assert found.startswith("error of output is")


def test_a_wrong_gradient_behind_a_right_output_is_named(trial):
    def forgetful(q, k, v):
        return SDPA(q, k.detach() + 0.5 * (k - k.detach()), v)

    assert fault(forgetful, Causal(), trial).startswith("error of dk is")


def test_nan_is_not_let_through(trial):
    def broken(q, k, v):
        out = SDPA(q, k, v)
        return torch.where(q.abs().sum() > 0, out * torch.nan, out)

    assert fault(broken, Causal(), trial).startswith("error of output is nan")


def test_the_probe_reads_the_mask_off_exactly(trial):
    mask = torch.rand(3, 97, 97) < 0.2
    mask |= torch.eye(97, dtype=torch.bool)
    assert torch.equal(visible_pairs(partial(plain_attention, mask=mask), trial), mask)
