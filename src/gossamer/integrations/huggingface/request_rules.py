"""What a request for a completion must be, so that the engine behind can answer it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

LONGEST_SHOWN = 80
"""Characters of a value that a refusal repeats."""
MOST_STOPS, LONGEST_STOP = 16, 256


class Refusal(Exception):
    """A request that is answered with a status other than 200, and with what to change."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param

    @property
    def body(self) -> dict[str, object]:
        """The answer's body, in the form that OpenAI's clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": None}}


@dataclass(frozen=True)
class ModelCard:
    """What clients may ask of the model that is served."""

    name: str
    context: int
    """Tokens of prompt and answer together."""
    chats: bool
    """Its tokenizer has a chat template."""


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test."""

    wanted: str
    holds: Callable[[Any], bool]


def integer(least: int, most: int) -> Rule:
    """A whole number in `least..most`."""
    return Rule(f"an integer from {least} to {most}", lambda value: _is_integer(value) and least <= value <= most)


def number(wanted: str, within: Callable[[float], bool]) -> Rule:
    """A number for which `within` holds, as `wanted` says."""
    return Rule(wanted, lambda value: (_is_integer(value) or isinstance(value, float)) and within(value))


def only(*values: object) -> Rule:
    """One of these values: the engine ignores the field, and does what they say anyway."""
    wanted = " or ".join(["null", *map(json.dumps, values)])
    return Rule(f"{wanted}, which is all that is supported", lambda value: value in values)


def never(reason: str) -> Rule:
    """No value but null, for the given reason."""
    return Rule(f"null: {reason}", lambda value: False)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_stop(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    each = all(_is_text(text) and 0 < len(text) <= LONGEST_STOP for text in texts)
    return 0 < len(texts) <= MOST_STOPS and each


def _is_bias(value: object) -> bool:
    amount = number("", lambda bias: -100 <= bias <= 100)
    return isinstance(value, dict) and all(map(str.isdecimal, value)) and all(map(amount.holds, value.values()))


def _is_list(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _is_message(value: object) -> bool:
    if not isinstance(value, dict) or not _is_text(value.get("role")):
        return False
    content = value.get("content")
    written = content is None or _is_text(content) or _is_list(content, _is_part)
    return written and _is_list(value.get("tool_calls", []), _is_call) and _is_text(value.get("tool_call_id", ""))


def _is_part(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "text" and _is_text(value.get("text"))


def _is_call(value: object) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not _is_text(function.get("name")):
        return False
    try:
        arguments = function.get("arguments")
        return isinstance(json.loads(arguments) if isinstance(arguments, str) else arguments, dict)
    except ValueError:
        return False


TEXT = Rule("a text", _is_text)
MESSAGES = Rule(
    'a list of at least one {"role": text, "content": text}; content may be a list of {"type": "text", "text": text}, '
    "and each of tool_calls has a function with a name and arguments",
    lambda value: bool(value) and _is_list(value, _is_message),
)
SHARED: Mapping[str, Rule] = {
    "stream": Rule("true or false", lambda value: isinstance(value, bool)),
    "temperature": number("a number from 0 to 2", lambda value: 0 <= value <= 2),
    "top_p": number("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "frequency_penalty": number("a number above -1 and at most 2", lambda value: -1 < value <= 2),
    "seed": integer(0, 2**63 - 1),
    "stop": Rule(f"a text of 1 to {LONGEST_STOP} characters, or a list of 1 to {MOST_STOPS} of them", _is_stop),
    "n": only(1),
    "presence_penalty": only(0),
    "logprobs": only(False),
    "generation_config": never("it would exchange the cache; give temperature, top_p, seed and stop by their names"),
}
RULES: Mapping[str, Mapping[str, Rule]] = MappingProxyType(
    {
        "/v1/completions": {
            **SHARED,
            "suffix": TEXT,
            "best_of": only(1),
            "echo": only(False),
        },
        "/v1/chat/completions": {
            **SHARED,
            "logit_bias": Rule('numbers from -100 to 100 by token, such as {"17": -100}', _is_bias),
            "tools": Rule("a list of objects", lambda value: _is_list(value, lambda tool: isinstance(tool, dict))),
            "tool_choice": only("auto"),
            "response_format": only({"type": "text"}),
            "modalities": only(["text"]),
            "top_logprobs": only(0),
            **dict.fromkeys(
                ("audio", "functions", "function_call", "prediction", "web_search_options"),
                never("the engine does not support it"),
            ),
            "chat_template_kwargs": never("it would let a client run a template of its own"),
        },
    }
)
"""What each field of a request must be where it is given and not null, by path."""
REQUIRED: Mapping[str, tuple[str, Rule]] = MappingProxyType(
    {"/v1/completions": ("prompt", TEXT), "/v1/chat/completions": ("messages", MESSAGES)}
)


def check(path: str, body: bytes, card: ModelCard) -> None:
    """Returns where the engine can answer the request, and raises what it is to be told where not.

    Raises:
        Refusal: 400 for a value, 404 for another model's name; the message names the field, the value and the fix.
    """
    fields = _read(body)
    asked = fields.get("model")
    if asked is not None and asked != card.name:
        raise Refusal(404, f"model is {_shown(asked)}; this server has {json.dumps(card.name)} only", "model")
    if path.endswith("/chat/completions") and not card.chats:
        raise Refusal(400, "the model's tokenizer has no chat template; use /v1/completions")
    name, rule = REQUIRED[path]
    if name not in fields or not rule.holds(fields[name]):
        _refuse(name, fields.get(name), rule)
    tokens = dict.fromkeys(("max_tokens", "max_completion_tokens"), integer(1, card.context))
    for name, rule in {**RULES[path], **tokens}.items():
        value = fields.get(name)
        if value is not None and not rule.holds(value):
            _refuse(name, value, rule)


def _read(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is text that no tokenizer takes
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON text ({error}); send one object") from error
    if not isinstance(fields, dict):
        raise Refusal(400, f"the body is {_shown(fields)}; send one object")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _refuse(name: str, value: object, rule: Rule) -> NoReturn:
    raise Refusal(400, f"{name} is {_shown(value)}; give {rule.wanted}", name)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} …"
