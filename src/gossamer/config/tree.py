"""Trees of frozen dataclasses as plain values, as TOML and JSON hold them, and back."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Tree = TypeVar("Tree")


def plain(value: Any) -> Any:
    """The tree as plain values that TOML and JSON can hold; fields that are None are left out."""
    if is_dataclass(value):
        pairs = ((part.name, getattr(value, part.name)) for part in fields(value))
        return {name: plain(inner) for name, inner in pairs if inner is not None}
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def leaves(value: Any) -> dict[str, Any]:
    """Every value of the tree by its dotted name."""
    return dict(_leaves(value, ""))


def _leaves(value: Any, name: str) -> list[tuple[str, Any]]:
    if not is_dataclass(value):
        return [(name, value)]
    return [leaf for part in fields(value) for leaf in _leaves(getattr(value, part.name), _join(name, part.name))]


def build(owner: type[Tree], settings: Any, default: Tree) -> Tree:
    """An `owner` with the values in `settings`, what `plain` gives, and for the rest those of `default`.

    Raises:
        ValueError: A key is unknown (the message names the nearest known one), or a value has the wrong type.
    """
    return _build(owner, settings, "", default)


def _build(owner: Any, settings: Any, where: str, default: Any) -> Any:
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where} is {settings!r}; give a table")
    types = get_type_hints(owner)
    for key in settings:
        if key not in types:
            raise ValueError(_unknown(key, where, list(types)))
    values = {name: getattr(default, name) for name in types} if default is not None else {}
    for key, value in settings.items():
        values[key] = _convert(types[key], value, _join(where, key), values.get(key))
    return owner(**values)


def _convert(kind: Any, value: Any, where: str, default: Any) -> Any:
    if get_origin(kind) in (UnionType, Union):
        (kind,) = (option for option in get_args(kind) if option is not NoneType)
    if is_dataclass(kind):
        return _build(kind, value, where, default)
    if get_origin(kind) is Literal:
        matches = value in get_args(kind)
    elif get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}; give {_described(kind)}")
        return tuple(_convert(get_args(kind)[0], part, f"{where}[{n}]", None) for n, part in enumerate(value))
    else:
        matches = isinstance(value, (int, float) if kind is float else kind)
        matches = matches and isinstance(value, bool) == (kind is bool)  # True is an int to Python, not to a person
    if not matches:
        raise ValueError(f"{where} is {value!r}; give {_described(kind)}")
    return value


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        if get_origin(part) is Literal:
            return f"a list of some of {', '.join(get_args(part))}"
        return f"a list of {_KINDS.get(part, 'tables')}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[kind]


_KINDS = {int: "integers", str: "texts"}


def _unknown(key: str, where: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {_join(where, near[0])}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {_join(where, key)}; {hint}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
