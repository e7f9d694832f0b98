"""`attend` within ends: each sequence is what lies between its ends, at the positions where it lies."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer import attend, explain
from gossamer.kernels import Problem as Asked
from gossamer.kernels.dense import DENSE
from gossamer.kernels.tiled import sequences
from gossamer.kernels.triton import DECODE
from gossamer.patterns import Causal, Window
from gossamer.plan import plan
from tests.checks import (
    Problem,
    Setting,
    check_empty_rows,
    check_equals_oracle,
    check_no_leak,
    check_repeatable,
    check_support,
    confined,
    draw,
    oracle,
    ours,
    run,
)
from tests.patterns_list import CAUSAL, HEADS, LENGTH, PATTERNS

WITHIN = ((0, 136), (0, 77), (59, 136), (20, 101), (64, 65), (40, 40), (136, 136))
"""Whole, padded behind, padded before, padded at both ends, of one token, and of none."""

USUAL = Setting(queries=LENGTH, width=4, key_heads=1, batch=len(WITHIN), within=WITHIN)


@pytest.mark.parametrize("sinks", [False, True], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("name", PATTERNS)
def test_it_is_the_definition_between_the_ends(name: str, sinks: bool) -> None:
    setting = replace(USUAL, heads=HEADS[name], sinks=sinks, softcap=3.0 if sinks else None)
    check_equals_oracle(draw(PATTERNS[name], setting))


@pytest.mark.parametrize("within", [(0, 50), (13, 90), (90, 136), (7, 7)], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_exactly_the_pairs_between_the_ends_are_seen(name: str, within: tuple[int, int]) -> None:
    check_support(PATTERNS[name], Setting(heads=HEADS[name], queries=LENGTH, within=(within,)))


@pytest.mark.parametrize(("queries", "keys"), [(30, 136), (150, 90), (1, 136)])
@pytest.mark.parametrize("name", ["causal window", "dilated", "longformer", "random blocks", "packed window"])
def test_the_last_query_still_stands_at_the_last_key(name: str, queries: int, keys: int) -> None:
    within = ((0, keys), (0, keys - 9), (keys - 50, keys - 1), (keys - 20, keys))
    setting = replace(USUAL, heads=HEADS[name], queries=queries, keys=keys, batch=4, within=within)
    check_equals_oracle(draw(PATTERNS[name], setting))


@pytest.mark.parametrize("name", ["causal window", "longformer", "bigbird", "rows"])
def test_queries_outside_see_nothing(name: str) -> None:
    check_empty_rows(PATTERNS[name], Setting(heads=HEADS[name], within=((30, 100),)))


@pytest.mark.parametrize("name", ["causal window", "streaming", "bigbird", "dilated longformer"])
def test_it_repeats_to_the_bit(name: str) -> None:
    check_repeatable(draw(PATTERNS[name], replace(USUAL, heads=HEADS[name], dtype=torch.float32)))


@pytest.mark.parametrize("name", ["causal window", "streaming", "causal dilated", "tangled"])
def test_causal_patterns_do_not_leak_between_the_ends(name: str) -> None:
    if name in CAUSAL:
        check_no_leak(CAUSAL[name], Setting(heads=HEADS[name], within=((20, 120),)), (30, 70))


def _outside(problem: Problem) -> Tensor:
    """bool [B, N], which positions lie outside."""
    position, (first, last) = torch.arange(problem.q.shape[2]), problem.within.T[..., None]
    return (position < first) | (position >= last)


@pytest.mark.parametrize("name", PATTERNS)
def test_what_lies_outside_changes_nothing_not_even_nan(name: str) -> None:
    problem = draw(PATTERNS[name], replace(USUAL, heads=HEADS[name]))
    outside = _outside(problem)[:, None, :, None]
    spoilt = {name: x.masked_fill(outside, torch.nan) for name, x in problem.inputs.items()}
    found, right = run(ours, replace(problem, **spoilt)), run(ours, problem)
    for result, x in right.items():
        assert torch.equal(found[result], x), f"{result} differs"
    assert (found["out"].movedim(1, 2)[_outside(problem)] == 0).all()
    for of in ("q", "k", "v"):
        assert (found[f"gradient of {of}"].movedim(1, 2)[_outside(problem)] == 0).all(), of


def test_full_ends_change_nothing() -> None:
    problem = draw(PATTERNS["streaming"], replace(USUAL, batch=2, within=((0, 136), (-5, 999))))
    found, right = run(ours, problem), run(ours, replace(problem, within=None))
    for name, x in right.items():
        torch.testing.assert_close(found[name], x, rtol=1e-12, atol=1e-12)


def test_ends_that_cross_hold_nothing() -> None:
    problem = draw(Causal(), replace(USUAL, batch=2, within=((90, 20), (300, 400))))
    out, lse = ours(problem)
    assert not out.any() and (lse == -torch.inf).all()


def test_ends_of_any_strides() -> None:
    problem = draw(PATTERNS["streaming"], USUAL)
    turned = torch.tensor(WITHIN, dtype=torch.int32).T.contiguous().T
    found = attend(problem.q, problem.k, problem.v, problem.pattern, within=turned)
    assert not turned.is_contiguous() and torch.equal(found, ours(problem)[0])


def test_padding_at_either_end_is_the_sequence_alone() -> None:
    """Where the pattern counts distances, a padded batch gives what each sequence gives without padding."""
    pattern, lengths = Causal() & Window(9), (40, 23, 6)
    setting = Setting(batch=3, queries=40, width=4)
    problem = draw(pattern, setting)
    for left in (True, False):
        ends = [(40 - n, 40) if left else (0, n) for n in lengths]
        out = attend(problem.q, problem.k, problem.v, pattern, within=torch.tensor(ends, dtype=torch.int32))
        for number, (first, last) in enumerate(ends):
            one = (x[number : number + 1, :, first:last] for x in (problem.q, problem.k, problem.v))
            torch.testing.assert_close(out[number : number + 1, :, first:last], attend(*one, pattern))


def test_dropout_is_that_of_the_positions() -> None:
    problem = draw(Causal() & Window(9), replace(USUAL, batch=2, within=((0, 136), (20, 90))))
    seed, settings = torch.tensor([5]), (problem.pattern.spec, 0.5, 0.0, 0.4, None)
    given = problem.q, problem.k, problem.v, None, seed, None
    whole, _ = torch.ops.gossamer.attend(*given, None, *settings)
    found, _ = torch.ops.gossamer.attend(*given, problem.within, *settings)
    torch.testing.assert_close(found[0], whole[0])
    torch.testing.assert_close(found[1, :, 28:90], whole[1, :, 28:90])  # from there on no key is missing


def test_it_may_be_explained() -> None:
    q = torch.zeros(1, 2, 64, 16)
    said = str(explain(q, q, q, Causal(), within=torch.tensor([[0, 9]], dtype=torch.int32)))
    assert "forward runs on tiled" in said


@pytest.mark.parametrize("told", ["within", "runs"])
def test_backends_without_ends_say_so(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.kernels.triton.decoding.without_gpu", lambda device: None)
    monkeypatch.setattr("gossamer.kernels.triton.decoding.find_spec", lambda name: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    problem = Asked(
        plan=plan(Causal(), 8, 8, 1), device=torch.device("cuda"), dtype=torch.bfloat16, batch=1, key_heads=1,
        width=16, value_width=16, softcap=0.0, dropout=0.0, has_sinks=False,
    )  # fmt: skip
    for backend, reason in ((DENSE, "it has no .*(bounds|runs)"), (DECODE, "decoding takes lengths, and no")):
        assert backend.refuses(problem) is None
        assert re.match(reason, backend.refuses(replace(problem, **{told: True})))


REFUSED: list[tuple[object, str]] = [
    (
        torch.tensor([[0, 3], [0, 3]]),
        r"within is torch\.int64 of shape \(2, 2\) on cpu; give int32 \[2, 2\], the first",
    ),
    (torch.tensor([[0, 3]], dtype=torch.int32), r"within is torch\.int32 of shape \(1, 2\)"),
    (torch.tensor([3, 3], dtype=torch.int32), r"of shape \(2,\)"),
    (torch.zeros(2, 2, dtype=torch.int32, device="meta"), r"on meta; give .* on cpu"),
    ([[0, 3], [0, 3]], r"within is a list; give a torch\.Tensor"),
]


@pytest.mark.parametrize(("within", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_other_ends_are_refused(within: object, message: str) -> None:
    x = torch.zeros(2, 1, 4, 4)
    for function in (attend, explain):
        with pytest.raises(ValueError, match=message):
            function(x, x, x, Causal(), within=within)


def test_ends_and_lengths_together_are_refused() -> None:
    x = torch.zeros(2, 1, 4, 4)
    ends = torch.tensor([[0, 3], [0, 3]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"lengths and within are both given; give within alone"):
        attend(x, x, x, Causal(), within=ends, lengths=ends[:, 1])


def test_ends_that_count_for_one_sequence_less_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault, planted: the ends of one sequence of the batch are forgotten."""
    sound = sequences.sequences
    problem = draw(Causal() & Window(20), USUAL)

    def forgetful(*given: object) -> object:
        for one in sound(*given):
            yield replace(one, sight=None) if one.number == 3 else one

    monkeypatch.setattr("gossamer.kernels.tiled.backend.sequences", forgetful)
    with pytest.raises(AssertionError):
        check_equals_oracle(problem)


def test_the_oracle_s_pattern_is_what_it_says() -> None:
    mask = confined(Causal(), 2, 4).dense_mask(5)
    assert mask.nonzero()[0].tolist() == [2, 3, 3] and mask.nonzero()[1].tolist() == [2, 2, 3]
    assert oracle(draw(Causal(), replace(USUAL, batch=1, within=((3, 3),))))[0].eq(0).all()
