"""The thread of generation: what is left, what ends, and how the server's end finds it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers.cli.serving.completion", reason="the engine needs gossamer[serve]")

from gossamer.integrations.huggingface import turns
from gossamer.integrations.huggingface.request_rules import Refusal


def asked(tokens: int, most: int, bias: dict | None = None) -> tuple[dict, SimpleNamespace]:
    inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.int64)}
    return inputs, SimpleNamespace(max_new_tokens=most, sequence_bias=bias)


class Model:
    """Generates until its listener raises, or as many tokens as it is asked for."""

    def __init__(self) -> None:
        self.began, self.drawn = threading.Event(), 0

    def generate(self, input_ids: torch.Tensor, generation_config: SimpleNamespace, **settings: object) -> torch.Tensor:
        for _ in range(generation_config.max_new_tokens):
            settings["streamer"].put(input_ids)
            self.began.set()
            self.drawn += 1
        return torch.cat([input_ids, torch.ones(1, self.drawn, dtype=torch.int64)], dim=1)


READER = SimpleNamespace(decode=lambda tokens, skip_special_tokens: "a" * len(tokens))


def test_an_answer_comes_back_as_text_and_tokens() -> None:
    inputs, config = asked(3, 5)
    made = turns.Turns(100).generate_non_streaming(Model(), READER, inputs, config, "id")
    text, given, tokens = asyncio.run(made)
    assert (text, given, tokens.tolist()) == ("aaaaa", 3, [1] * 5)


def test_a_cancelled_request_ends_its_generation_and_the_next_begins() -> None:
    async def story() -> None:
        thread, model = turns.Turns(10**9), Model()
        request = asyncio.ensure_future(thread.generate_non_streaming(model, READER, *asked(1, 10**8), "id"))
        assert await asyncio.to_thread(model.began.wait, 30)
        request.cancel()
        await asyncio.wait([request])
        assert (await thread.generate_non_streaming(Model(), READER, *asked(1, 2), "id"))[0] == "aa"
        assert 0 < model.drawn < 10**8

    asyncio.run(story())


def test_a_generation_that_fails_is_the_request_s_failure_and_nobody_else_s() -> None:
    class Failing(Model):
        def generate(self, **settings: object) -> torch.Tensor:
            raise ZeroDivisionError

    async def story() -> None:
        thread = turns.Turns(100)
        with pytest.raises(ZeroDivisionError):
            await thread.generate_non_streaming(Failing(), READER, *asked(1, 2), "id")
        assert (await thread.generate_non_streaming(Model(), READER, *asked(1, 2), "id"))[0] == "aa"

    asyncio.run(story())


@pytest.mark.parametrize("tokens", [0, 10, 11])
def test_a_prompt_has_a_token_and_leaves_room_for_one(tokens: int) -> None:
    with pytest.raises(Refusal, match=f"the prompt has {tokens} tokens"):
        asyncio.run(turns.Turns(10).generate_non_streaming(Model(), READER, *asked(tokens, 1), "id"))


def test_an_answer_ends_with_the_context_and_a_bias_is_a_float() -> None:
    inputs, config = asked(7, 1024, {(1,): 5})
    assert asyncio.run(turns.Turns(10).generate_non_streaming(Model(), READER, inputs, config, "id"))[0] == "aaa"
    assert config.max_new_tokens == 3
    assert isinstance(config.sequence_bias[(1,)], float)


def test_a_thread_is_settled_when_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SECONDS_TO_STOP", 0.01)
    thread, goes_on = turns.Turns(10), threading.Event()
    thread.submit(goes_on.wait)
    assert not thread.settled()
    goes_on.set()
    monkeypatch.setattr(turns, "SECONDS_TO_STOP", 30.0)
    assert thread.settled()


@pytest.mark.parametrize(("end", "code"), [("SystemExit(143)", 143), ("KeyboardInterrupt()", 130)])
def test_a_process_that_does_not_wait_keeps_its_exit_code(end: str, code: int) -> None:
    script = f"from gossamer.integrations.huggingface.serving import _leave\nprint('said')\n_leave({end})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (code, "said\n")
