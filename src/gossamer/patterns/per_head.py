"""Different patterns for different heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from numpy.typing import ArrayLike, NDArray

from .base import Bools, Pattern, require_integer, require_some, written


@dataclass(frozen=True, repr=False)
class PerHead(Pattern):
    """The first heads follow the first pattern, the next ones the second, and so on.

    Joined with `&`, `|`, `~` and `.T` it acts on every head's own pattern.

    >>> PerHead([(Causal(), 1), (Strided(2), 2)]).dense_mask(2).astype(int).tolist()
    [[[1, 0], [1, 1]], [[1, 0], [1, 0]], [[1, 0], [1, 0]]]

    Raises:
        ValueError: There is no group, a group is no (pattern, number of heads), or a pattern is itself per head.
    """

    members: Sequence[tuple[Pattern, int]]

    def __post_init__(self) -> None:
        members = tuple(map(_member, require_some("PerHead", "members", self.members)))
        object.__setattr__(self, "members", members)

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return tuple(pattern for pattern, _ in self.members)

    @property
    def head_cuts(self) -> tuple[int, ...]:
        return tuple(accumulate((heads for _, heads in self.members), initial=0))

    def for_head(self, head: int) -> Pattern:
        for (first, last), (pattern, _) in zip(pairwise(self.head_cuts), self.members, strict=True):
            if first <= head < last:
                return pattern
        raise ValueError(f"head {head} is outside the {self.head_cuts[-1]} heads of {self!r}")

    def allows(self, q: ArrayLike, k: ArrayLike) -> Bools:
        raise ValueError("a PerHead pattern differs between heads; ask pattern.for_head(h).allows(q, k)")

    def bounds(self, q_first: NDArray, q_last: NDArray, k_first: NDArray, k_last: NDArray) -> tuple[Bools, Bools]:
        raise ValueError("a PerHead pattern differs between heads; ask pattern.for_head(h).bounds(...)")

    @property
    def spec(self) -> str:
        return f"PerHead([{', '.join(map(written, self.members))}])"


def _member(given: object) -> tuple[Pattern, int]:
    match given:
        case (Pattern() as pattern, heads) if not pattern.head_cuts:
            return pattern, require_integer("PerHead", "heads", heads, least=1)
        case (Pattern() as pattern, _):
            raise ValueError(f"PerHead: {pattern!r} is itself per head; give its groups one by one")
    raise ValueError(f"PerHead: a group is {given!r}; give (pattern, number of heads)")
