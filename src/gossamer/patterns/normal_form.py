"""Splits a pattern into disjoint clauses and a rest that has no closed form."""

from __future__ import annotations

from dataclasses import dataclass

from .base import And, Not, Or, Pattern, Transposed
from .clauses import ALL, Clause, Extent, disjoint, few
from .offsets import Irregular


@dataclass(frozen=True)
class NormalForm:
    """Disjoint `clauses` that cover every pair of the pattern but those of `rest`; the two share no pair."""

    clauses: tuple[Clause, ...]
    rest: Pattern | None


def normal_form(pattern: Pattern, extent: Extent) -> NormalForm:
    """The pattern within `extent` as disjoint clauses, and what remains for a look at blocks."""
    try:
        clauses, rest = _unfold(pattern, extent)
        return NormalForm(tuple(disjoint(clauses)), rest)
    except Irregular:
        return NormalForm((), pattern)


def _unfold(pattern: Pattern, extent: Extent) -> tuple[list[Clause], Pattern | None]:
    """(clauses, which may overlap; the part of the pattern that is no clause and overlaps none of them)."""
    match pattern:
        case Or(left, right):
            clauses, rest = _either(left, right, extent)
        case And(left, right):
            clauses, rest = _both(pattern, left, right, extent)
        case Not(inner):
            clauses, rest = _outside(pattern, inner, extent)
        case Transposed(inner):
            clauses, rest = _unfold(inner, extent.T)
            clauses, rest = [clause.T for clause in clauses], rest and Transposed(rest)
        case _:
            own = pattern.clauses(extent)
            clauses, rest = ([], pattern) if own is None else (list(own), None)
    return few([clipped for clause in clauses if not (clipped := clause.clip(extent)).empty]), rest


def _either(left: Pattern, right: Pattern, extent: Extent) -> tuple[list[Clause], Pattern | None]:
    (clauses, rest), (more, other_rest) = _unfold(left, extent), _unfold(right, extent)
    if rest is not None and more:
        rest = And(rest, Not(right if other_rest is None else _regular_part(right, other_rest)))
    if other_rest is not None and clauses:
        other_rest = And(other_rest, Not(left))
    return clauses + more, _join(rest, other_rest)


def _both(pattern: Pattern, left: Pattern, right: Pattern, extent: Extent) -> tuple[list[Clause], Pattern | None]:
    (clauses, rest), (more, other_rest) = _unfold(left, extent), _unfold(right, extent)
    if rest is not None and other_rest is not None:  # its four parts would double the text at every level
        return [], pattern
    crossed = [a & b for a in clauses for b in more]
    return crossed, _join(rest and And(rest, right), other_rest and And(left, other_rest))


def _outside(pattern: Pattern, inner: Pattern, extent: Extent) -> tuple[list[Clause], Pattern | None]:
    clauses, rest = _unfold(inner, extent)
    if rest is not None:
        return [], pattern
    remaining = [ALL]
    for clause in clauses:
        remaining = few([piece for whole in remaining for piece in whole - clause])
    return remaining, None


def _regular_part(pattern: Pattern, rest: Pattern | None) -> Pattern:
    return pattern if rest is None else And(pattern, Not(rest))


def _join(a: Pattern | None, b: Pattern | None) -> Pattern | None:
    return Or(a, b) if a is not None and b is not None else a or b
