"""Which backend runs, and what is said where none does."""

from dataclasses import replace

import pytest
import torch

from gossamer import kernels
from gossamer.kernels import BACKENDS, Problem, Unsupported, choose, pick
from gossamer.kernels.dense import DENSE
from gossamer.kernels.tiled import TILED
from gossamer.patterns import Causal, Documents, Pattern, PerHead, Strided, Window
from gossamer.plan import plan

PROBLEM = Problem(
    plan=plan(Causal(), 4, 4, 1), device=torch.device("cpu"), dtype=torch.float32, batch=1, key_heads=1,
    width=8, value_width=8, softcap=0.0, dropout=0.0, has_sinks=False,
)  # fmt: skip


class Refusing:
    def __init__(self, name: str, reason: str | None):
        self.name, self.reason = name, reason

    def refuses(self, problem: Problem) -> str | None:
        return self.reason


def offer(monkeypatch: pytest.MonkeyPatch, *backends: Refusing) -> None:
    monkeypatch.setattr(kernels, "BACKENDS", backends)


def test_the_first_that_accepts_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = Refusing("a", "too wide"), Refusing("b", None), Refusing("c", None)
    offer(monkeypatch, a, b, c)
    assert pick(PROBLEM) is b
    assert pick(PROBLEM, "c") is c


def test_an_explicit_choice_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Refusing("a", "too wide"), Refusing("b", None))
    with pytest.raises(Unsupported, match="a: too wide"):
        pick(PROBLEM, "a")


def test_every_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Refusing("a", "too wide"), Refusing("b", "no dropout"))
    with pytest.raises(Unsupported, match=r"(?s)a: too wide.*b: no dropout"):
        pick(PROBLEM)


def test_the_choice_keeps_the_reasons_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Refusing("a", "too wide"), Refusing("b", None), Refusing("c", "never asked"))
    assert choose(PROBLEM).refusals == {"a": "too wide"}
    assert str(choose(PROBLEM)) == "b\n  not a: too wide"
    assert str(choose(PROBLEM, "c")) == "none\n  not c: never asked"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"backend is 'hopper9'; give one of: .*tiled"):
        pick(PROBLEM, "hopper9")


def test_the_portable_backend_is_the_last_resort() -> None:
    assert BACKENDS[-1] is TILED
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)
    assert issubclass(Unsupported, ValueError)


EVERYTHING = Causal() | Causal().T
ON_GPU = replace(PROBLEM, device=torch.device("cuda", 0), dtype=torch.bfloat16)


def dense_refuses(pattern: Pattern, queries: int, keys: int, heads: int = 2, **changes: object) -> str | None:
    return DENSE.refuses(replace(ON_GPU, plan=plan(pattern, queries, keys, heads), key_heads=heads, **changes))


@pytest.fixture
def with_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU whose PyTorch has flash attention."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)


@pytest.mark.usefixtures("with_flash")
@pytest.mark.parametrize(("pattern", "queries", "keys"), [
    (Causal(), 9, 9), (Causal() & Window(9), 9, 9), (Causal(), 1, 30), (EVERYTHING, 9, 9), (EVERYTHING, 5, 30),
    (Window(30), 9, 9), (Causal() & Strided(1), 9, 9), (PerHead([(Causal(), 1), (Causal() & Window(99), 1)]), 9, 9),
], ids=str)  # fmt: skip
def test_dense_attention_runs_what_is_dense(pattern: Pattern, queries: int, keys: int) -> None:
    assert dense_refuses(pattern, queries, keys) is None


@pytest.mark.usefixtures("with_flash")
@pytest.mark.parametrize(("pattern", "queries", "keys"), [
    (Causal() & Window(8), 9, 9), (Causal(), 5, 30), (Window(3), 9, 9), (Causal() & Documents([4, 5]), 9, 9),
    (PerHead([(Causal(), 1), (EVERYTHING, 1)]), 9, 9), (~Causal(), 9, 9), (Causal() & ~Causal(), 9, 9),
    (EVERYTHING, 0, 9), (EVERYTHING, 9, 0), (Causal().T, 9, 9), (Causal() & Strided(2), 9, 9),
], ids=str)  # fmt: skip
def test_dense_attention_refuses_what_is_sparse(pattern: Pattern, queries: int, keys: int) -> None:
    assert "a sparse kernel does less" in str(dense_refuses(pattern, queries, keys))


@pytest.mark.usefixtures("with_flash")
@pytest.mark.parametrize(("change", "reason"), [
    ({"device": torch.device("cpu")}, "on CUDA; the inputs are on cpu"),
    ({"dtype": torch.float32}, "inputs are torch.float32"),
    ({"dropout": 0.1}, "no dropout"),
    ({"softcap": 3.0}, "no soft cap"),
    ({"has_sinks": True}, "no learnable sinks"),
    ({"lengths": True}, "no lengths"),
    ({"backward": True}, "no backward that repeats to the bit"),
    ({"batch": 0}, "the batch is empty"),
    ({"width": 12, "value_width": 12}, "a multiple of 8"),
    ({"value_width": 16}, "widths are 8 and 16"),
    ({"width": 264, "value_width": 264}, "up to 256"),
])  # fmt: skip
def test_dense_attention_says_what_it_lacks(change: dict, reason: str) -> None:
    assert reason in str(dense_refuses(Causal(), 9, 9, **change))
