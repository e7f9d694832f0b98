"""The algebra of patterns: values that say who may see whom, joined by `&`, `|`, `~` and `.T`."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .clauses import Clause, Extent, positions

Bools = NDArray[np.bool_]


class Pattern(ABC):
    """Which query positions may see which key positions, at any length.

    A pattern is a frozen value without length, device or kernel. A new one needs `allows` and `bounds`;
    `clauses`, where it has a closed form, makes its plan cheaper. It is a frozen dataclass of numbers, text, tuples
    of them and patterns, so that `parse` can read its text.
    """

    __dataclass_fields__: ClassVar[dict]

    known: ClassVar[dict[str, type[Pattern]]] = {}
    """Every pattern class that text may name, for `parse`."""

    definitions: ClassVar[int] = 0
    """How many pattern classes were ever defined: a class defined again must not meet results of the old one."""

    def __init_subclass__(cls, named: bool = True) -> None:
        """`named=False` for classes that no text names: operators and bases."""
        if named:
            Pattern.known[cls.__name__] = cls
        Pattern.definitions += 1

    @abstractmethod
    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        """Whether the query at position `q` may see the key at position `k`; the two broadcast."""

    @abstractmethod
    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        """(may, must) for whole rectangles, ends included: `may` is False only where no pair is allowed,
        `must` is True only where every pair is."""

    def clauses(self, extent: Extent) -> tuple[Clause, ...] | None:
        """The pattern within `extent` as a union of clauses, or None where it has no such form."""
        return None

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """The patterns this one is made of."""
        return ()

    @property
    def grain(self) -> int | None:
        """The block size at which the pattern changes, or None where it has none."""
        return min((part.grain for part in self.parts if part.grain), default=None)

    @property
    def head_cuts(self) -> tuple[int, ...]:
        """Head numbers at which a `PerHead` inside begins or ends; empty where every head is alike."""
        return tuple(sorted({cut for part in self.parts for cut in part.head_cuts}))

    def for_head(self, head: int) -> Pattern:
        """The pattern as one head sees it: free of `PerHead`."""
        return self

    @property
    def T(self) -> Pattern:
        """The pattern with the roles of queries and keys exchanged: columns become rows."""
        return Transposed(self)

    def __and__(self, other: Pattern) -> Pattern:
        return And(self, other) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: Pattern) -> Pattern:
        return Or(self, other) if isinstance(other, Pattern) else NotImplemented

    def __invert__(self) -> Pattern:
        return Not(self)

    @property
    def spec(self) -> str:
        """The pattern as text: `parse(pattern.spec) == pattern`. A setting left at None is left out."""
        fields = getattr(self, "__dataclass_fields__", {})
        given = {name: getattr(self, name) for name in fields}
        settings = [
            f"{name}={written(value)}" for name, value in given.items() if not fields[name].default is value is None
        ]
        return f"{type(self).__name__}({', '.join(settings)})"

    def __repr__(self) -> str:
        return self.spec

    def dense_mask(self, queries: int, keys: int | None = None) -> Bools:
        """[Q, K] (or [H, Q, K] for `PerHead`), True where visible; for tests and pictures: it is n×n."""
        extent = Extent.aligned(queries, queries if keys is None else keys)
        q, k = positions(extent.queries)[:, None], positions(extent.keys)[None, :]
        if not self.head_cuts:
            return np.broadcast_to(self.allows(q, k), (len(q), k.shape[1])).copy()
        return np.stack([self.for_head(head).dense_mask(queries, keys) for head in range(self.head_cuts[-1])])

    def density(self, queries: int, keys: int | None = None) -> float:
        """The exact share of the Q·K pairs that is visible, averaged over heads; nothing n×n is made."""
        from .counting import density

        return density(self, Extent.aligned(queries, queries if keys is None else keys))

    def show(self, length: int = 48, cells: int = 48) -> None:
        """Draws the pattern in the terminal: queries downwards, keys to the right."""
        from .drawing import drawing

        print(drawing(self, length, cells))

    def groups(self, heads: int) -> Iterator[tuple[int, int, Pattern]]:
        """(first head, last head + 1, pattern) for each run of heads that share a pattern.

        Raises:
            ValueError: The pattern is written for another number of heads.
        """
        cuts = self.head_cuts or (0, heads)
        if cuts[-1] != heads:
            raise ValueError(
                f"pattern: {self} is written for {cuts[-1]} heads, but the input has {heads}; "
                f"make its head counts sum to {heads}"
            )
        for first, last in pairwise(cuts):
            yield first, last, self.for_head(first)


@dataclass(frozen=True, repr=False)
class And(Pattern, named=False):
    """Pairs that both patterns allow."""

    left: Pattern
    right: Pattern

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        return self.left.allows(q, k) & self.right.allows(q, k)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        (may, must), (other_may, other_must) = (p.bounds(q_first, q_last, k_first, k_last) for p in self.parts)
        return may & other_may, must & other_must

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return self.left, self.right

    def for_head(self, head: int) -> Pattern:
        return And(self.left.for_head(head), self.right.for_head(head))

    @property
    def spec(self) -> str:
        left = f"({self.left.spec})" if isinstance(self.left, Or) else self.left.spec
        right = f"({self.right.spec})" if isinstance(self.right, And | Or) else self.right.spec
        return f"{left} & {right}"


@dataclass(frozen=True, repr=False)
class Or(Pattern, named=False):
    """Pairs that at least one of the patterns allows."""

    left: Pattern
    right: Pattern

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        return self.left.allows(q, k) | self.right.allows(q, k)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        (may, must), (other_may, other_must) = (p.bounds(q_first, q_last, k_first, k_last) for p in self.parts)
        return may | other_may, must | other_must

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return self.left, self.right

    def for_head(self, head: int) -> Pattern:
        return Or(self.left.for_head(head), self.right.for_head(head))

    @property
    def spec(self) -> str:
        right = f"({self.right.spec})" if isinstance(self.right, Or) else self.right.spec
        return f"{self.left.spec} | {right}"


@dataclass(frozen=True, repr=False)
class Not(Pattern, named=False):
    """Pairs that the pattern forbids."""

    inner: Pattern

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        return ~self.inner.allows(q, k)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        may, must = self.inner.bounds(q_first, q_last, k_first, k_last)
        return ~must, ~may

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return (self.inner,)

    def for_head(self, head: int) -> Pattern:
        return Not(self.inner.for_head(head))

    @property
    def spec(self) -> str:
        return f"~({self.inner.spec})" if isinstance(self.inner, And | Or) else f"~{self.inner.spec}"


@dataclass(frozen=True, repr=False)
class Transposed(Pattern, named=False):
    """The pattern with queries and keys exchanged."""

    inner: Pattern

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        return self.inner.allows(k, q)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        return self.inner.bounds(k_first, k_last, q_first, q_last)

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return (self.inner,)

    def for_head(self, head: int) -> Pattern:
        return Transposed(self.inner.for_head(head))

    @property
    def spec(self) -> str:
        return f"({self.inner.spec}).T" if isinstance(self.inner, And | Or | Not) else f"{self.inner.spec}.T"


class KeySet(Pattern, named=False):
    """A pattern that looks at the key's position alone; its `.T` looks at the query's alone."""

    @abstractmethod
    def holds(self, positions: NDArray) -> Bools:
        """Whether each position belongs to the set."""

    @abstractmethod
    def between(self, first: NDArray, last: NDArray) -> NDArray:
        """How many positions of the set lie in `first..last`, ends included."""

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        shape = np.broadcast_shapes(np.shape(q), np.shape(k))
        return np.broadcast_to(self.holds(np.asarray(k)), shape)

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        count = self.between(k_first, k_last)
        return count > 0, count == k_last - k_first + 1

    def clauses(self, extent: Extent) -> tuple[Clause, ...] | None:
        return (Clause(keys=self.holds(positions(extent.keys))),)


class OffsetSet(Pattern, named=False):
    """A pattern that looks at the distance between query and key alone."""

    @property
    @abstractmethod
    def clause(self) -> Clause:
        """The distances, as a clause over every key and query."""

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        return self.clause.offsets.holds(np.subtract(q, k))

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        return self.clause.offsets.bounds(q_first - k_last, q_last - k_first)

    def clauses(self, extent: Extent) -> tuple[Clause, ...]:
        return (self.clause,)


def looks_at_distance_alone(pattern: Pattern) -> bool:
    """Whether the pattern is the same wherever a sequence begins: sets of distances, joined by operators alone."""
    joined = isinstance(pattern, And | Or | Not | Transposed)  # others, such as Packed, ask where their parts stand
    return isinstance(pattern, OffsetSet) or (joined and all(map(looks_at_distance_alone, pattern.parts)))


def written(setting: object) -> str:
    """A setting of a pattern as text that `parse` reads."""
    match setting:
        case Pattern():
            return setting.spec
        case tuple():
            return f"({', '.join(map(written, setting))}{',' if len(setting) == 1 else ''})"
        case int() if not isinstance(setting, bool):
            return str(operator.index(setting))  # torch.compile makes a symbol of a number that varies; ask its value
    return repr(setting)


def require_integer(owner: str, name: str, value: object, least: int) -> int:
    """`value` as an int, or an error that names the argument, the value and the fix."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{owner}: {name} is {value!r}; give an integer of at least {least}")
    if number >= 2**63:
        raise ValueError(f"{owner}: {name} is {value!r}; give an integer below 2**63")
    return number


def require_some(owner: str, name: str, values: object) -> tuple:
    """`values` as a tuple of at least one, or an error that names the argument, the value and the fix."""
    try:
        some = tuple(values)  # type: ignore[arg-type]
    except TypeError:
        some = ()
    if not some:
        raise ValueError(f"{owner}: {name} is {values!r}; give a list of at least one")
    return some


def require_buckets(owner: str, name: str, value: object) -> int | tuple[int, ...] | None:
    """`value` as None, or as one or several numbers of buckets that a hash can have; anything else is an error."""
    if value is None:
        return None
    several = isinstance(value, list | tuple)
    try:
        numbers = [require_integer(owner, name, number, least=1) for number in (value if several else [value])]
    except ValueError:
        numbers = []
    if not numbers or any(number % 2 and number > 1 for number in numbers):
        raise ValueError(f"{owner}: {name} is {value!r}; give 1 or an even number, a list of them, or None")
    return tuple(numbers) if several else numbers[0]


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` is an int or a float, and no flag."""
    return isinstance(value, int | float) and not isinstance(value, bool)
