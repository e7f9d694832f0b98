"""Which backend runs, and what is said where none does."""

import pytest
import torch

from gossamer import kernels
from gossamer.kernels import BACKENDS, Problem, Unsupported, pick
from gossamer.kernels.tiled import TILED
from gossamer.patterns import Causal
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


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"backend is 'hopper9'; give one of: .*tiled"):
        pick(PROBLEM, "hopper9")


def test_the_portable_backend_is_the_last_resort() -> None:
    assert BACKENDS[-1] is TILED
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)
    assert issubclass(Unsupported, ValueError)
