"""`BlockTopK`: the highest blocks, the forced ones among them, ties to the older, and none that has not begun."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.selectors.block_topk import BlockTopK, positions_of, query_chunks


def by_hand(choice: BlockTopK, scores: Tensor, positions: Tensor) -> list[list[int]]:
    """The definition, a query at a time, for scores [Q, M]."""
    rows = []
    for row, position in zip(scores.tolist(), positions.tolist(), strict=True):
        own = position // choice.size
        begun = range(min(own + 1, len(row)))
        forced = [m for m in begun if m < choice.first or m > own - choice.local]
        others = sorted((m for m in begun if m not in forced), key=lambda m: (-row[m], m))
        chosen = sorted([*forced, *others][: choice.count])
        rows.append(chosen + [-1] * (min(choice.count, len(row)) - len(chosen)))
    return rows


CHOICES = (
    BlockTopK(4, 3),
    BlockTopK(4, 1),
    BlockTopK(1, 5, first=2, local=2),
    BlockTopK(3, 4, first=1, local=2),
    BlockTopK(4, 3, local=0),
    BlockTopK(5, 99),
    BlockTopK(64, 2),
)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("distinct", [2, 5, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_definition(choice: BlockTopK, distinct: int, dtype: torch.dtype) -> None:
    """Few distinct scores make many ties."""
    queries, keys = 17, 23
    scores = torch.randint(-distinct, distinct, (2, 3, queries, choice.blocks(keys))).to(dtype)
    positions = positions_of(queries, keys, scores.device)
    found = choice.choose(scores, positions)
    assert found.dtype == torch.int32
    for of_batch, row in zip(found, scores, strict=True):
        for of_head, head in zip(of_batch, row, strict=True):
            assert of_head.tolist() == by_hand(choice, head, positions)


def test_forced_blocks_win_over_any_score_and_what_is_no_number_loses() -> None:
    choice = BlockTopK(1, 3, first=1, local=1)
    scores = torch.tensor([[0.0, torch.inf, torch.nan, -torch.inf, torch.inf, -5.0]])
    assert choice.choose(scores, torch.tensor([5])).tolist() == [[0, 1, 5]]
    assert choice.choose(scores[:, :4], torch.tensor([3])).tolist() == [[0, 1, 3]]
    unknown = torch.tensor([[torch.nan, -torch.inf, 1.0]])
    assert BlockTopK(1, 2, local=0).choose(unknown, torch.tensor([2])).tolist() == [[0, 2]]


def test_zeros_of_both_signs_are_equal() -> None:
    assert BlockTopK(1, 1, local=0).choose(torch.tensor([[-0.0, 0.0]]), torch.tensor([1])).tolist() == [[0]]


def test_chunks_cover_the_queries_and_hold_so_many_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.selectors.block_topk.CELLS", 100)
    chunks = list(query_chunks(25, 30))
    assert [(each.start, each.stop) for each in chunks] == [*((i, i + 3) for i in range(0, 24, 3)), (24, 25)]
    assert [(each.start, each.stop) for each in query_chunks(2, 1000)] == [(0, 1), (1, 2)]
    assert [(each.start, each.stop) for each in query_chunks(0, 5)] == [(0, 0)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0, "count": 1}, "size is 0; give an integer of at least 1"),
        ({"size": 4, "count": 0}, "count is 0"),
        ({"size": 4, "count": 2, "first": -1}, "first is -1"),
        ({"size": 4, "count": 2, "first": 1, "local": 2}, "first is 1 and local is 2, which is more than count=2"),
        ({"size": 4.5, "count": 2}, "size is 4.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"BlockTopK: {message}"):
        BlockTopK(**settings)


@pytest.mark.parametrize(("queries", "keys"), [(3, 2), (0, 0)])
def test_queries_need_keys(queries: int, keys: int) -> None:
    with pytest.raises(ValueError, match=f"q has {queries} queries and k {keys} keys"):
        positions_of(queries, keys, torch.device("cpu"))
