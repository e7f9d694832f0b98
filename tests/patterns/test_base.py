"""Patterns as values: equality, hashing, immutability, heads, and classes that users write."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from gossamer.patterns import Causal, Documents, Pattern, PerHead, Sinks, Tokens, Window, parse
from gossamer.patterns.base import KeySet, OffsetSet
from tests.checks import check_bounds, check_normal_form, check_text
from tests.patterns_list import PATTERNS


def test_equal_patterns_are_equal_keys() -> None:
    assert Causal() & Window(3) == Causal() & Window(size=3)
    assert len({Window(3), Window(3), Window(4), Causal(), ~Causal(), Causal().T}) == 5
    assert Tokens([3, 1, 1]) == Tokens((1, 3)) == Tokens(np.array([1, 3]))
    assert Window(3) != Sinks(3)
    assert len(set(PATTERNS.values())) == len(PATTERNS)


@pytest.mark.parametrize("pattern", [Window(3), Causal() & Window(3), PerHead([(Causal(), 1)])], ids=str)
def test_patterns_do_not_change(pattern: Pattern) -> None:
    name = dataclasses.fields(pattern)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(pattern, name, None)


def test_patterns_join_with_patterns_only() -> None:
    for wrong in (3, None, "Causal()", np.ones(3)):
        with pytest.raises(TypeError):
            Causal() & wrong
        with pytest.raises(TypeError):
            Causal() | wrong


def test_the_heads_of_a_plain_pattern_are_all_alike() -> None:
    assert list(Causal().groups(3)) == [(0, 3, Causal())]
    assert Causal().head_cuts == ()


def test_another_number_of_heads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"written for 3 heads, but the input has 4; .* sum to 4"):
        list(PerHead([(Causal(), 3)]).groups(4))


def test_a_pattern_per_head_is_asked_head_by_head() -> None:
    pattern = PerHead([(Causal(), 3)])
    with pytest.raises(ValueError, match=r"for_head\(h\)"):
        pattern.allows(1, 1)
    with pytest.raises(ValueError, match=r"for_head\(h\)"):
        (pattern & Window(2)).bounds(*np.zeros((4, 1), int))
    with pytest.raises(ValueError, match="head 3 is outside the 3 heads"):
        pattern.for_head(3)


def test_density_counts_without_a_dense_mask() -> None:
    assert Causal().density(4) == 10 / 16
    assert Causal().density(1, 4) == 1.0
    assert (Causal() & Window(2)).density(2**20) == (2 * 2**20 - 1) / 2**40
    assert PerHead([(Causal(), 1), (Causal() & Window(1), 3)]).density(4) == (10 + 3 * 4) / (4 * 16)
    assert Causal().density(0) == 0.0


def test_negative_lengths_are_refused() -> None:
    for call in (lambda: Causal().dense_mask(-1), lambda: Causal().density(3, -2)):
        with pytest.raises(ValueError, match="at least 0"):
            call()


def test_show_prints_the_drawing(capsys: pytest.CaptureFixture[str]) -> None:
    (Causal() & Window(2)).show(4)
    assert capsys.readouterr().out.splitlines() == [
        "Causal() & Window(size=2)",
        "┌────────┐",
        "│██      │",
        "│████    │",
        "│  ████  │",
        "│    ████│",
        "└────────┘",
    ]


@dataclass(frozen=True)
class Shifted(OffsetSet):
    """The key `by` places before the query; a dataclass with a repr of its own."""

    by: int

    @property
    def clause(self):
        from gossamer.patterns.clauses import Clause
        from gossamer.patterns.offsets import Offsets

        return Clause(Offsets(self.by, self.by))


@dataclass(frozen=True)
class EvenKeys(KeySet):
    """Keys at even positions."""

    def holds(self, positions: np.ndarray) -> np.ndarray:
        return positions % 2 == 0

    def between(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return last // 2 - (first - 1) // 2


@dataclass(frozen=True)
class Multiples(Pattern):
    """Pairs whose positions multiply to a multiple of `of`: no closed form, and bounds that know nothing."""

    of: int

    def allows(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        return np.multiply(q, k) % self.of == 0

    def bounds(self, q_first: np.ndarray, q_last: np.ndarray, k_first: np.ndarray, k_last: np.ndarray):
        shape = np.broadcast_shapes(np.shape(q_first), np.shape(k_first))
        return np.ones(shape, bool), np.zeros(shape, bool)


@pytest.mark.parametrize("pattern", [Shifted(3), Shifted(-3), EvenKeys(), Multiples(6)], ids=str)
def test_a_pattern_that_a_user_writes_is_a_pattern(pattern: Pattern) -> None:
    for whole in (pattern, Causal() & pattern, ~pattern.T | Documents([20, 30])):
        check_text(whole)
        check_bounds(whole, 40, 50, rectangles=100)
        check_normal_form(whole, 50, 40)


def test_a_class_inside_a_function_has_a_text_too() -> None:
    @dataclass(frozen=True)
    class Nearby(Window):
        pass

    assert str(~Nearby(3)) == "~Nearby(size=3)"
    assert parse("~Nearby(3)") == ~Nearby(3)


def test_the_latest_class_of_a_name_counts() -> None:
    """As when a notebook's cell is run again."""

    def define(limit: int) -> type[Pattern]:
        @dataclass(frozen=True)
        class Rerun(KeySet):
            def holds(self, positions: np.ndarray) -> np.ndarray:
                return positions < limit

            def between(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
                return np.maximum(np.minimum(last, limit - 1) - first + 1, 0)

        return Rerun

    first = define(2)
    assert parse("Rerun()") == first()
    second = define(3)
    assert parse("Rerun()") == second()
    assert first() != second()
    assert parse("Rerun()").dense_mask(1, 4).tolist() == [[True, True, True, False]]
