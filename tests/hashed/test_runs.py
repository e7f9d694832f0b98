"""Hashed attention by the band kernels: the same definition, for what is one run of places, and a reason otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gossamer import Unsupported
from gossamer.hashed import attend_hashed
from gossamer.hashed import runs as module
from gossamer.selectors import LSH
from tests.hashed_checks import CASES, Case, check_definition, check_repeatable, check_support, draw, ours

REPEATED = LSH(3, 16, repeats=True)
RUNS = {
    "paper, one round": Case(LSH.paper(1, 16), rounds=1),
    "own buckets, repeated": CASES["own buckets, repeated"],
    "padded": Case(LSH.paper(1, 16), rounds=1, within=((0, 41), (9, 70))),
    "padded, repeated": Case(REPEATED, within=((0, 41), (9, 70))),
    "mostly alone": Case(REPEATED, length=40, buckets=50),
    "scaled": Case(replace(REPEATED, scale=None, before=2), width=13, value_width=5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", RUNS)
def test_it_is_the_definition(name: str, dtype: torch.dtype) -> None:
    check_definition(RUNS[name], dtype, backend="runs")


@pytest.mark.parametrize("name", RUNS)
def test_exactly_those_that_meet_are_seen(name: str) -> None:
    check_support(RUNS[name], backend="runs")


def test_results_repeat_to_the_bit() -> None:
    check_repeatable(RUNS["own buckets, repeated"], torch.float32, "cpu", "runs")


def test_where_nothing_exists_nothing_comes_out() -> None:
    problem = draw(Case(REPEATED, within=((0, 0), (69, 70))))
    out, lse = ours(problem, problem.x, problem.v, "runs")
    assert not out[0].any() and lse[0].isneginf().all()
    assert torch.equal(out[1, :, 69], problem.v[1, :, 69]) and not out[1, :, :69].any()
    assert torch.equal(lse, ours(problem, problem.x, problem.v)[1])


def test_what_is_no_run_is_refused_with_the_reason() -> None:
    x, buckets = torch.randn(1, 2, 20, 4), torch.randint(3, (1, 2, 2, 20))
    for lsh, why in {
        LSH.paper(2, 4, causal=False): "both ways, a token stands within what it sees",
        LSH.trax(2, 4): "tokens of several buckets are in no order of time",
        LSH.paper(2, 4): "tokens met in several rounds weigh less in each",
    }.items():
        with pytest.raises(Unsupported, match=f"runs: {why}"):
            attend_hashed(x, x, buckets, lsh, backend="runs")


def test_results_left_in_the_order_of_buckets_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "inverse", lambda order: order)
    with pytest.raises(AssertionError, match="error"):
        check_definition(RUNS["paper, one round"], torch.float64, backend="runs")
