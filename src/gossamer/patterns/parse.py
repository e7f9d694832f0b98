"""Reads a pattern back from its text; runs no code of the text."""

from __future__ import annotations

import ast
import textwrap
from functools import lru_cache
from typing import Any

from .base import Pattern

LONGEST_SHOWN = 200
"""Characters of a text that an error message repeats."""

TEXT = "_text"
"""Where a pattern keeps its text, beside its fields: neither its value nor its hash."""


def parse(text: str) -> Pattern:
    """The pattern that `text` writes down: `parse(pattern.spec) == pattern`.

    >>> str(parse("Causal() & (Window(128) | ~Strided(10).T)"))
    'Causal() & (Window(size=128) | ~Strided(every=10, offset=0).T)'

    Raises:
        ValueError: The text is no pattern; the message shows the place and lists the known names.
    """
    if not isinstance(text, str):
        raise ValueError(f"pattern is {text!r}; give its text, for example 'Causal() & Window(128)'")
    return _parse(text, Pattern.definitions)


def checked_text(pattern: Pattern) -> str:
    """The pattern's text, seen to read back as the pattern; both are done once and kept with the pattern.

    Raises:
        ValueError: The text reads back as something else.
    """
    text, definitions = pattern.__dict__.get(TEXT, ("", -1))
    if definitions != Pattern.definitions:
        text, definitions = pattern.spec, Pattern.definitions
        if parse(text) != pattern:
            shown = textwrap.shorten(text, LONGEST_SHOWN, placeholder=" …")
            raise ValueError(
                f"pattern {shown} does not read back from its text as itself; "
                f"make its class a frozen dataclass whose name no other pattern has"
            )
        pattern.__dict__[TEXT] = text, definitions
    return text


@lru_cache(maxsize=1024)
def _parse(text: str, definitions: int) -> Pattern:
    """Cached until the next pattern class is defined: that one may carry a name seen before."""
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} …"
    try:
        return _pattern(ast.parse(text.strip(), mode="eval").body, shown)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"pattern {shown!r}: {error}; write for example Causal() & Window(128)") from None


def _value(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.List(items) | ast.Tuple(items):
            return tuple(_value(item, text) for item in items)
        case ast.UnaryOp(ast.Invert(), operand):
            return ~_pattern(operand, text)
        case ast.BinOp(left, ast.BitAnd(), right):
            return _pattern(left, text) & _pattern(right, text)
        case ast.BinOp(left, ast.BitOr(), right):
            return _pattern(left, text) | _pattern(right, text)
        case ast.Attribute(inner, "T"):
            return _pattern(inner, text).T
        case ast.Call(ast.Name(name), arguments, keywords):
            return _call(name, arguments, keywords, text)
    raise ValueError(f"pattern {text!r}: {ast.unparse(node)!r} is no part of a pattern; {_known()}")


def _pattern(node: ast.expr, text: str) -> Pattern:
    value = _value(node, text)
    if not isinstance(value, Pattern):
        raise ValueError(f"pattern {text!r}: {ast.unparse(node)!r} is no pattern; {_known()}")
    return value


def _call(name: str, arguments: list[ast.expr], keywords: list[ast.keyword], text: str) -> Pattern:
    if name not in Pattern.known:
        raise ValueError(f"pattern {text!r}: there is no pattern {name!r}; {_known()}")
    named = {keyword.arg or "**": _value(keyword.value, text) for keyword in keywords}
    try:
        return Pattern.known[name](*(_value(argument, text) for argument in arguments), **named)
    except TypeError as error:
        raise ValueError(f"pattern {text!r}: {name}: {error}") from None


def _known() -> str:
    return f"known patterns: {', '.join(sorted(Pattern.known))}, joined by & | ~ and .T"
