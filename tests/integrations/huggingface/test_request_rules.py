"""Each rule refuses what the engine would stumble over, and lets through what it can answer."""

from __future__ import annotations

import json

import pytest

from gossamer.integrations.huggingface.request_rules import ModelCard, Refusal, check

CARD = ModelCard("tiny", context=100, chats=True)
ASKED = {"role": "user", "content": "a"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def refusal(path: str, fields: object, card: ModelCard = CARD) -> Refusal | None:
    try:
        return check(path, json.dumps(fields).encode(), card)
    except Refusal as refused:
        return refused


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": "tiny", "max_tokens": 100, "temperature": 0, "top_p": 1, "seed": 0, "stream": True},
        {"model": None, "max_tokens": None, "stop": None, "n": None},
        {"n": 1, "logprobs": False, "presence_penalty": 0.0, "frequency_penalty": 0.5, "user": "me"},
        {"stop": "end"},
        {"stop": ["a", "b"]},
        {"stream_options": {"include_usage": True}},
    ],
)
def test_what_the_engine_can_answer_passes(fields: dict) -> None:
    assert refusal(COMPLETIONS, {"prompt": "a", **fields}) is None
    assert refusal(CHAT, {"messages": [ASKED], **fields}) is None


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": [{"type": "text", "text": "be"}]}, ASKED],
        [ASKED, CALL, {"role": "tool", "content": "1", "tool_call_id": "x"}],
        [{"role": "assistant"}],
    ],
)
def test_messages_pass(messages: list) -> None:
    assert refusal(CHAT, {"messages": messages, "logit_bias": {"17": -100, "3": 0.5}, "tools": [{}]}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", value) for value in (-1, 0, 101, 1.0, True, "5", [5])),
        ("max_completion_tokens", 10**30),
        *(("temperature", value) for value in (-0.1, 2.5, "hot", True, 1e400)),
        *(("top_p", value) for value in (0, 1.1, {})),
        *(("frequency_penalty", value) for value in (-1, 3)),
        *(("seed", value) for value in (-1, 2**63, 0.5)),
        *(("stop", value) for value in ("", [], [""], ["a"] * 17, "a" * 257, 5)),
        *(("n", value) for value in (0, 2)),
        ("stream", "yes"),
        ("logprobs", True),
        ("presence_penalty", 1),
        ("generation_config", "{}"),
    ],
)
@pytest.mark.parametrize(("path", "asked"), [(COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": [ASKED]})])
def test_a_field_out_of_its_range_is_named(path: str, asked: dict, name: str, value: object) -> None:
    refused = refusal(path, {**asked, name: value})
    assert refused is not None and refused.status == 400
    assert refused.param == name or "Infinity" in str(refused)
    assert refused.body["error"]["message"] == str(refused)


@pytest.mark.parametrize("prompt", [None, 5, ["a"], [1, 2], {}])
def test_a_prompt_is_a_text(prompt: object) -> None:
    assert refusal(COMPLETIONS, {"prompt": prompt}).param == "prompt"


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "a",
        ["a"],
        [{"content": "a"}],
        [{"role": 1, "content": "a"}],
        [{"role": "user", "content": 1}],
        [{"role": "user", "content": ["a"]}],
        [{"role": "user", "content": [{"text": "a"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "assistant", "tool_calls": None}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
        [{"role": "assistant", "tool_calls": ["f"]}],
    ],
)
def test_messages_have_a_role_and_texts(messages: object) -> None:
    assert refusal(CHAT, {"messages": messages}).param == "messages"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", [1]),
        ("tools", ["f"]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("functions", [{}]),
        ("chat_template_kwargs", {"chat_template": "{% for a in range(10**9) %}{% endfor %}"}),
    ],
)
def test_what_a_chat_cannot_have_is_named(name: str, value: object) -> None:
    assert refusal(CHAT, {"messages": [ASKED], name: value}).param == name


def test_a_model_that_is_not_here_is_not_found() -> None:
    assert refusal(COMPLETIONS, {"prompt": "a", "model": "other"}).status == 404
    assert refusal(COMPLETIONS, {"prompt": "a", "model": ["tiny"]}).status == 404


def test_a_model_without_a_template_does_not_chat() -> None:
    assert "use /v1/completions" in str(refusal(CHAT, {"messages": [ASKED]}, ModelCard("tiny", 100, chats=False)))


def test_a_long_value_is_not_repeated_whole() -> None:
    assert len(str(refusal(COMPLETIONS, {"prompt": ["a" * 10_000]}))) < 200
