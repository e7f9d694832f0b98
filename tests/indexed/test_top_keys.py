"""`top_keys` finds exactly the best keys, says what it refuses, and holds no tensor of all pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer.indexed import top_keys
from gossamer.kernels.tiled import top_keys as tiled
from gossamer.kernels.tiled.top_keys import TILED_SCORES
from gossamer.kernels.top_keys import Indexed
from tests.top_keys_checks import CASES, Case, check_definition, check_normal, draw

DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_definition(name: str) -> None:
    check_definition(CASES[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_the_definition(dtype: torch.dtype) -> None:
    check_definition(CASES["square"], dtype)
    check_definition(CASES["visible"], dtype)


@pytest.mark.parametrize("precision", ["fp8", "fp8 ue8m0"])
def test_rounded_to_eight_bits_it_is_the_definition_of_what_is_rounded(precision: str) -> None:
    check_normal(Case(width=128, heads=4), torch.float32, precision=precision)
    check_definition(Case(width=16), precision="fp8 ue8m0")  # small integers times a power of two are not rounded


def test_normal_features_are_ordered_to_within_rounding() -> None:
    check_normal(Case(queries=90, keys=130, heads=16, width=64, count=30), torch.bfloat16)


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "MOST_PRODUCTS", 1000)
    for most in (1, 100, 1000):
        monkeypatch.setattr(tiled.TiledScores, "most_scores", most)
        for name in ("square", "visible", "queries before the first key", "the last queries"):
            check_definition(CASES[name])


def test_no_part_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[tuple[int, ...]] = []
    score = TILED_SCORES.score

    def seen(index: Indexed) -> Tensor:
        made = score(index)
        parts.append(tuple(made.shape))
        return made

    monkeypatch.setattr(tiled.TiledScores, "most_scores", 4000)
    monkeypatch.setattr(TILED_SCORES, "score", seen)
    q, k, weights, _ = draw(Case(queries=300, keys=300, batch=3), torch.float32)
    top_keys(q, k, weights, 8)
    assert max(batch * queries * keys for batch, queries, keys in parts) <= 4000
    assert sum(batch * queries for batch, queries, _ in parts) == 3 * 300
    assert parts[0][2] < 20, "keys behind every query of a part are not scored"


def test_short_sequences_are_scored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many scores at a time as numbers are returned, and still without what no query of a part may see."""
    parts: list[tuple[int, ...]] = []
    score = TILED_SCORES.score
    monkeypatch.setattr(TILED_SCORES, "score", lambda index: (parts.append(index.q.shape), score(index))[1])
    q, k, weights, _ = draw(Case(queries=300, keys=300, batch=32, heads=1), torch.float32)
    found = top_keys(q, k, weights, 28)
    wanted = [(rows, queries) for rows in (7, 7, 7, 7, 4) for queries in (128, 128, 44)]
    assert [(shape[0], shape[2]) for shape in parts] == wanted
    assert torch.equal(found[:1], top_keys(q[:1], k[:1], weights[:1], 28))


@pytest.mark.parametrize(("queries", "wanted"), [(1, [16]), (3, [16]), (50, [2] * 8), (90, [1] * 16)])
def test_few_queries_of_many_long_sequences_are_scored_together(
    queries: int, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many queries at a time as of one sequence, however few keys they choose of those that they see."""
    parts: list[int] = []
    score = TILED_SCORES.score
    monkeypatch.setattr(TILED_SCORES, "score", lambda index: (parts.append(index.q.shape[0]), score(index))[1])
    q, k, weights, _ = draw(Case(queries=queries, keys=300, batch=16, heads=1), torch.float32)
    found = top_keys(q, k, weights, 8)
    assert parts == wanted
    assert torch.equal(found[5:6], top_keys(q[5:6], k[5:6], weights[5:6], 8))


@pytest.mark.parametrize(("keys", "wanted"), [(150, 120), (500, 80), (900, 40), (1100, 36), (4001, 9), (50_000, 1)])
def test_parts_are_by_the_measure_wherever_it_fits(keys: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any length, within what may be held: 40,000 scores, and multiples of 40 queries if these have not more."""
    parts: list[int] = []
    score = TILED_SCORES.score
    monkeypatch.setattr(tiled.TiledScores, "most_scores", 40_000)
    monkeypatch.setattr(tiled.TiledScores, "together", lambda self, index: 40)
    monkeypatch.setattr(TILED_SCORES, "score", lambda index: (parts.append(index.q.shape[2]), score(index))[1])
    q, k, weights, _ = draw(Case(queries=130, keys=keys, batch=1, heads=1), torch.float32)
    top_keys(q[:, :, -2 * wanted :], k, weights[:, -2 * wanted :], 8)
    assert parts == ([wanted, 130 - wanted] if 2 * wanted > 130 else [wanted, wanted])


def test_the_future_changes_nothing() -> None:
    q, k, weights, _ = draw(CASES["square"], torch.float32)
    before = top_keys(q, k, weights, 8)
    k[:, 40:] = torch.nan
    q[:, :, 40:], weights[:, 40:] = torch.inf, torch.nan
    assert torch.equal(top_keys(q, k, weights, 8)[:, :40], before[:, :40])


def test_a_key_without_a_score_is_never_taken() -> None:
    q, k, weights, _ = draw(CASES["square"], torch.float32)
    k[:, 3], k[:, 5, 0] = torch.nan, torch.inf
    for precision in ("as given", "fp8"):
        found = top_keys(q.abs() + 1, k, -weights.abs() - 1, 80, precision=precision)  # infinity times -1
        assert not torch.isin(found, torch.tensor([3, 5])).any()
        assert (found[:, -1] >= 0).sum(-1).tolist() == [68, 68]


def test_ties_go_to_the_older_key() -> None:
    q, k = torch.ones(1, 1, 50, 4), torch.ones(1, 50, 4)
    found = top_keys(q, k, torch.zeros(1, 50, 1), 6)
    assert torch.equal(found[0, 10:], torch.arange(6, dtype=torch.int32).expand(40, 6))


def test_prefill_is_decode() -> None:
    q, k, weights, _ = draw(CASES["square"], torch.float32)
    whole = top_keys(q, k, weights, 8)
    steps = [top_keys(q[:, :, i : i + 1], k[:, : i + 1], weights[:, i : i + 1], 8) for i in range(70)]
    assert torch.equal(torch.cat(steps, 1), whole)


def test_strides_and_inputs_are_left_alone() -> None:
    q, k, weights, _ = draw(CASES["square"], torch.float32)
    same = [x.clone() for x in (q, k, weights)]
    right = top_keys(q, k, weights, 8)
    found = top_keys(q.contiguous(), k.mT.contiguous().mT, weights.mT.contiguous().mT, 8)
    assert torch.equal(found, right)
    assert all(torch.equal(x, y) for x, y in zip(same, (q, k, weights), strict=True))


def test_no_gradient_passes() -> None:
    q, k, weights, _ = draw(CASES["square"], torch.float32)
    assert not top_keys(q.requires_grad_(), k.requires_grad_(), weights.requires_grad_(), 4).requires_grad


def test_autocast_decides_the_dtype() -> None:
    q, k, weights = torch.randn(1, 2, 30, 8), torch.randn(1, 30, 8), torch.randn(1, 30, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = top_keys(q, k.bfloat16(), weights, 5)
    assert torch.equal(found, top_keys(q.bfloat16(), k.bfloat16(), weights, 5))


Q, K, W = torch.zeros(2, 3, 4, 8), torch.zeros(2, 5, 8), torch.zeros(2, 4, 3)
REFUSED = {
    "q is \\[3, 4, 8\\]": ((Q[0], K, W, 2), {}),
    "k \\[2, 5, 7\\]": ((Q, K[..., :7], W, 2), {}),
    "q is torch.float32 on cpu and k torch.float64": ((Q, K.double(), W, 2), {}),
    "give at least 1 index head": ((Q[:, :0], K, W[..., :0], 2), {}),
    "weights is torch.float64": ((Q, K, W.double(), 2), {}),
    "weights is torch.float32 \\[2, 3, 4\\]": ((Q, K, W.mT, 2), {}),
    "count is 0": ((Q, K, W, 0), {}),
    "count is 1.5": ((Q, K, W, 1.5), {}),
    "precision is 'fp4'": ((Q, K, W, 2), {"precision": "fp4"}),
    "visible is torch.float32": ((Q, K, W, 2), {"visible": W[..., 0]}),
    "visible is torch.int64 \\[2, 5\\]": ((Q, K, W, 2), {"visible": torch.zeros(2, 5, dtype=torch.int64)}),
    "backend is 'fast'": ((Q, K, W, 2), {"backend": "fast"}),
    "backend is 3": ((Q, K, W, 2), {"backend": 3}),
    "k is a list": ((Q, [], W, 2), {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(message: str) -> None:
    given, settings = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        top_keys(*given, **settings)


def test_many_random_problems() -> None:
    for seed in range(40):
        draws = torch.Generator().manual_seed(seed)
        queries, keys, heads, width, count = (
            int(torch.randint(1, most, (), generator=draws)) for most in (40, 60, 9, 20, 30)
        )
        case = Case(queries, keys, heads, width, count, batch=1, relu=seed % 3 > 0, causal=seed % 4 > 0)
        check_definition(replace(case, visible=seed % 2 > 0))
