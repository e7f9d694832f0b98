"""The gate lets right attention through and names what is wrong with the rest."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gossamer.attention import attend
from gossamer.bench.gate import LAST, Trial, fault, last_rows_fault, plain_attention, visible_pairs
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


def grouped(q, k, v):
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def test_key_heads_that_serve_several_query_heads_are_judged_too(trial):
    trial = replace(trial, heads=6, key_heads=2)
    assert [x.shape[1] for x in trial.draw()] == [6, 2, 2, 6]
    assert fault(grouped, Causal(), trial) is None
    assert fault(partial(attend, pattern=WINDOW), WINDOW, trial) is None


def test_query_heads_given_to_the_wrong_key_heads_are_named(trial):
    def shuffled(q, k, v):
        return SDPA(q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1))

    assert fault(shuffled, Causal(), replace(trial, heads=6, key_heads=2)).startswith("error of output is")


@pytest.fixture
def problem() -> list[torch.Tensor]:
    """q, k, v and the output's gradient: two sequences of 300, four query heads on two key heads."""
    return [torch.randn(2, heads, 300, 16) for heads in (4, 2, 2, 4)]


def outcome(attention, problem) -> dict[str, torch.Tensor]:
    *inputs, dout = problem
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    gradients = torch.autograd.grad(out, leaves, dout)
    return dict(zip(("output", "dq", "dk", "dv"), (out.detach(), *gradients), strict=True))


def test_a_right_result_of_any_size_passes_by_its_last_rows(problem):
    assert last_rows_fault(outcome(grouped, problem), problem, Causal()) is None
    assert last_rows_fault(outcome(partial(attend, pattern=WINDOW), problem), problem, WINDOW) is None


@pytest.mark.parametrize("size", [31, 33])
def test_a_window_that_is_one_key_off_is_seen_in_the_last_rows(size, problem):
    found = last_rows_fault(outcome(partial(attend, pattern=WINDOW), problem), problem, Causal() & Window(size))
    assert found.startswith("error of output is")


@pytest.mark.parametrize("name", ["output", "dq", "dk", "dv"])
def test_a_wrong_last_row_of_any_result_is_named(name, problem):
    found = outcome(grouped, problem)
    found[name][-1, -1, 299] *= 1.5
    assert last_rows_fault(found, problem, Causal()).startswith(f"error of {name} is")
    found = outcome(grouped, problem)
    found[name][-1, 0, 300 - LAST] *= 1.5
    assert last_rows_fault(found, problem, Causal()).startswith(f"error of {name} is")


def test_one_value_that_was_never_written_is_named(problem):
    found = outcome(grouped, problem)
    found["dk"][0, 1, 7, 3] = torch.nan
    assert last_rows_fault(found, problem, Causal()) == "dk is not finite everywhere"
