"""A backend that was asked for is refused in every process, where the part of a single one is more than it takes."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from gossamer.kernels import TILED, Problem, Unsupported
from gossamer.ops.choice import choice
from gossamer.parallel import Shards
from gossamer.parallel import acceptance as module
from gossamer.parallel.acceptance import require_accepted
from gossamer.parallel.softmax_part import Scores
from gossamer.patterns import Causal, Window

SHARD = 12


def _shards_alone(problem: Problem) -> str | None:
    """Refuses what the second process alone has: some queries that read keys before its shard."""
    queries = problem.plan.queries
    return None if queries == SHARD else f"{queries} queries are no shard"


def _forward_alone(problem: Problem) -> str | None:
    return "gradients" if problem.backward else None


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("refuses", "learns", "backend", "refused"),
    [
        (_shards_alone, False, "tiled", "3 queries are no shard"),
        (_shards_alone, False, None, None),
        (_forward_alone, True, "tiled", "gradients"),
        (_forward_alone, False, "tiled", None),
    ],
)
def test_all_refuse_what_one_would(rank: int, refuses, learns: bool, backend: str | None, refused: str | None) -> None:
    q = torch.zeros(1, 2, SHARD, 8, requires_grad=learns)
    shards, scores = Shards((0, SHARD, 2 * SHARD), rank), Scores(None, None, 0.0, backend)
    for remembered in (choice, module._require_accepted):
        remembered.cache_clear()
    with mock.patch.object(type(TILED), "refuses", lambda self, problem: refuses(problem)):
        if refused is None:
            require_accepted(q, q, q, Causal() & Window(4), shards, scores)
        else:
            with pytest.raises(Unsupported, match=refused):
                require_accepted(q, q, q, Causal() & Window(4), shards, scores)
    choice.cache_clear()
