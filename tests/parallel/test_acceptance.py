"""A backend that was asked for is refused in every process, where the part of a single one is more than it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch

from gossamer.kernels import TILED, Problem, Unsupported
from gossamer.ops.choice import choice
from gossamer.parallel import Shards, acceptance, by_heads, course
from gossamer.parallel.acceptance import require_accepted
from gossamer.parallel.softmax_part import Scores
from gossamer.patterns import Causal, PerHead, Window

SHARD = 12
NEAR = Causal() & Window(4)


@pytest.fixture
def refusing(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the portable backend refuses meanwhile; nobody remembers it afterwards."""
    remembering = choice, acceptance._require_accepted
    for function in remembering:
        function.cache_clear()
    with mock.patch.object(type(TILED), "refuses", lambda self, problem: request.param(problem)):
        yield
    for function in remembering:
        function.cache_clear()


def _shards_alone(problem: Problem) -> str | None:
    """Refuses what the second process alone has: some queries that read keys before its shard."""
    queries = problem.plan.queries
    return None if queries == SHARD else f"{queries} queries are no shard"


def _dense_alone(problem: Problem) -> str | None:
    """Refuses what the second process alone has: heads that do not see everything before them."""
    return None if problem.plan.pairs == 2 * SHARD * (2 * SHARD + 1) else "a window"


def _forward_alone(problem: Problem) -> str | None:
    return "gradients" if problem.backward else None


def _asked(rank: int, backend: str | None, *, learns: bool = False, of_heads: bool = False) -> None:
    q = torch.zeros(1, 4, SHARD, 8, requires_grad=learns)
    pattern = PerHead([(Causal(), 2), (NEAR, 2)]) if of_heads else NEAR
    calls_of = by_heads._calls_of if of_heads else course.calls_of
    shards = Shards((0, SHARD, 2 * SHARD), rank)
    require_accepted(q, q, q, pattern, shards, Scores(None, None, 0.0, backend), calls_of=calls_of)


def _refused(what: str, ask: Callable[[], None]) -> None:
    with pytest.raises(Unsupported, match=what):
        ask()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("refusing", [_shards_alone], indirect=True)
@pytest.mark.usefixtures("refusing")
def test_all_refuse_what_one_would_over_keys(rank: int) -> None:
    _refused("3 queries are no shard", lambda: _asked(rank, "tiled"))
    _asked(rank, None)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("refusing", [_dense_alone], indirect=True)
@pytest.mark.usefixtures("refusing")
def test_all_refuse_what_one_would_over_heads(rank: int) -> None:
    _refused("a window", lambda: _asked(rank, "tiled", of_heads=True))
    _asked(rank, None, of_heads=True)


@pytest.mark.parametrize("of_heads", [False, True])
@pytest.mark.parametrize("refusing", [_forward_alone], indirect=True)
@pytest.mark.usefixtures("refusing")
def test_gradients_are_asked_for_where_they_are_wanted(of_heads: bool) -> None:
    _refused("gradients", lambda: _asked(0, "tiled", learns=True, of_heads=of_heads))
    _asked(0, "tiled", of_heads=of_heads)
