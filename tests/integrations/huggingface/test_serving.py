"""A real server on loopback and OpenAI's own client: whose tokens come, and what ends, is refused and goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer import Sinks, Window

pytest.importorskip("transformers.cli.serving.completion", reason="the engine needs transformers[serving]")
import openai
import tokenizers
import transformers

from gossamer.integrations.huggingface import sparsify
from gossamer.integrations.huggingface.gateway import Gateway, Limits
from gossamer.integrations.huggingface.request_rules import ModelCard
from gossamer.integrations.huggingface.serving import application
from gossamer.integrations.huggingface.turns import InTurns

SOURCES = str(Path(gossamer.__file__).parent.parent)
ALPHABET = "".join(map(chr, range(32, 127)))
PATTERN = Window(6) | Sinks(1)
POSITIONS = 2**17
ENDLESS = 2**16
"""Tokens that the model needs many minutes for: whoever waits for them waits past every timeout here."""
PATIENCE = 60
"""Seconds after which a test says that something hangs."""
TEMPLATE = (
    "{% if messages[0].role == 'tool' %}{{ raise_exception('a tool cannot begin') }}{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token for each printable character of ASCII."""
    vocabulary = {character: number for number, character in enumerate(["\n", *ALPHABET])}
    whole = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="\n"))
    whole.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="\n", chat_template=TEMPLATE)


def tiny() -> transformers.LlamaForCausalLM:
    """A random model whose tokens depend on their whole past, and which never stops by itself."""
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=1 + len(ALPHABET), max_position_embeddings=POSITIONS, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(shape).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says its pattern."""
    path = tmp_path_factory.mktemp("served") / "tiny"
    sparsify(tiny(), PATTERN).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


Writes = Callable[[str, int], str]


def greedy(model: transformers.LlamaForCausalLM) -> Writes:
    """What generate itself writes on from a prompt."""
    reads = tokenizer()

    def writes(prompt: str, tokens: int) -> str:
        given = reads(prompt, return_tensors="pt")
        made = model.generate(**given, max_new_tokens=tokens, do_sample=False)
        return reads.decode(made[0, given["input_ids"].shape[-1] :], skip_special_tokens=True)

    return writes


@pytest.fixture(scope="module")
def sparse() -> Writes:
    return greedy(sparsify(tiny(), PATTERN))


@pytest.fixture(scope="module")
def dense() -> Writes:
    return greedy(tiny())


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen
    client: openai.OpenAI
    log: Path

    @property
    def place(self) -> tuple[str, int]:
        return self.client.base_url.host, self.client.base_url.port


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[Server]:
    """`gossamer serve` in a process of its own, which has begun to listen."""
    command = [sys.executable, "-m", "gossamer", "serve", str(folder), "--port", "0", "--device", "cpu", *flags]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCES, *sys.path]), "OMP_NUM_THREADS": "1"}
    log = folder.parent / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        said = process.stdout.readline().split()
        assert said, log.read_text()
        with openai.OpenAI(base_url=said[-1], api_key="none", max_retries=0, timeout=PATIENCE) as client:
            yield Server(process, client, log)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with served(folder, "--max-body", "100000") as running:
        yield running


def complete(server: Server, prompt: str, tokens: int) -> str:
    return server.client.completions.create(model="tiny", prompt=prompt, max_tokens=tokens).choices[0].text


def streamed(server: Server, prompt: str, tokens: int) -> str:
    with server.client.completions.create(model="tiny", prompt=prompt, max_tokens=tokens, stream=True) as stream:
        return "".join(chunk.choices[0].text for chunk in stream)


def chat(server: Server, prompt: str, tokens: int) -> str:
    asked = [{"role": "user", "content": prompt}]
    answer = server.client.chat.completions.create(model="tiny", messages=asked, max_tokens=tokens)
    return answer.choices[0].message.content


def chat_streamed(server: Server, prompt: str, tokens: int) -> str:
    asked = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    made = server.client.chat.completions.create(model="tiny", messages=asked, max_tokens=tokens, stream=True)
    with made as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def in_the_template(prompt: str) -> str:
    return f"<user>{prompt}<assistant>"


WAYS = (
    (complete, str),
    (streamed, str),
    (chat, in_the_template),
    (chat_streamed, in_the_template),
)


@pytest.mark.parametrize(("way", "wrapped"), WAYS)
def test_the_sparse_model_is_served(way: Callable, wrapped: Callable, server: Server, sparse: Writes, dense: Writes):
    """Each endpoint, streamed or not, gives what generate gives, and not what the dense model would."""
    prompt, tokens = "A prompt that is longer than the window.", 40
    assert way(server, prompt, tokens) == sparse(wrapped(prompt), tokens)
    assert sparse(wrapped(prompt), tokens) != dense(wrapped(prompt), tokens)


def test_the_answer_says_how_it_ended(server: Server, sparse: Writes) -> None:
    made = server.client.completions.create(model="tiny", prompt="abc", max_tokens=12)
    assert (made.model, made.choices[0].finish_reason) == ("tiny", "length")
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (3, 12)
    stop = sparse("abc", 12)[5:7]
    made = server.client.completions.create(model="tiny", prompt="abc", max_tokens=12, stop=[stop])
    assert made.choices[0].text == sparse("abc", 12).partition(stop)[0] + stop
    assert made.choices[0].finish_reason == "stop"


def test_the_model_is_listed_and_the_server_is_well(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == ["tiny"]
    assert server.client.models.retrieve("tiny").id == "tiny"
    with urllib.request.urlopen(f"http://{server.place[0]}:{server.place[1]}/health", timeout=PATIENCE) as answer:
        assert json.load(answer) == {"status": "ok"}


def test_each_of_many_concurrent_requests_gets_its_own_tokens(server: Server, sparse: Writes) -> None:
    prompts = [f"Request {number} of many: {chr(65 + number % 26) * (number + 1)}" for number in range(48)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = pool.map(lambda job: job[0][0](server, job[1], 12), zip(WAYS * 12, prompts, strict=True))
        wanted = [sparse(wrapped(prompt), 12) for (_, wrapped), prompt in zip(WAYS * 12, prompts, strict=True)]
        assert list(answers) == wanted
    assert len(set(wanted)) > 40  # else another's tokens would look like one's own


def test_clients_that_vanish_hold_nobody_up(server: Server, sparse: Writes) -> None:
    """Some leave within their stream, some while they wait for it, some without a stream."""
    leavers = [server.client.completions.create(model="tiny", prompt="a", max_tokens=ENDLESS, stream=True)]
    next(iter(leavers[0]))
    with ThreadPoolExecutor(16) as pool:
        for number in range(8):
            pool.submit(vanish, server, "/v1/completions", {"prompt": f"b{number}", "stream": number % 2 == 0})
            asked = {"messages": [{"role": "user", "content": f"c{number}"}], "stream": number % 2 == 0}
            pool.submit(vanish, server, "/v1/chat/completions", asked)
    leavers[0].close()
    assert complete(server, "I wait", 8) == sparse("I wait", 8)


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_client_that_vanishes_at_any_moment_ends_its_generation(version: str) -> None:
    """It goes so many turns of the event loop after its request: before that is begun, before its stream is, within."""
    state, card = InTurns(POSITIONS), ModelCard("tiny", POSITIONS, chats=True)
    gateway = Gateway(application(sparsify(tiny(), PATTERN), tokenizer(), card, state), card, Limits(10**5, 8))
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": ENDLESS, "stream": True}).encode()
    asked = {"type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"", "root_path": ""}
    asked |= {"query_string": b"", "headers": [(b"content-type", b"application/json")], "http_version": "1.1"}

    async def leaves_after(turns: int) -> None:
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict:
            for part in parts:
                return part
            for _ in range(turns):
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            pass

        await gateway({**asked, "asgi": {"spec_version": version}}, receive, send)
        assert await asyncio.to_thread(state.turns.submit(int).result, PATIENCE) == 0, f"{turns} turns"

    async def story() -> None:
        for turns in range(12):
            await leaves_after(turns)

    asyncio.run(story())


def vanish(server: Server, path: str, fields: dict) -> None:
    """Sends a request for very many tokens and hangs up without reading an answer."""
    body = json.dumps({"model": "tiny", "max_tokens": ENDLESS, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(server.place, timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.2)  # so that the request is in the engine before its client is gone


MALFORMED = [
    (b"", 400, "no JSON text"),
    (b'{"prompt": "a"', 400, "no JSON text"),
    (b"\xff\xfe\xfd", 400, "no JSON text"),
    (b"[" * 50_000, 400, "no JSON text"),
    (b'["prompt"]', 400, "send one object"),
    (b"{}", 400, "prompt is null; give a text"),
    (b'{"prompt": ["a", "b"]}', 400, "prompt is"),
    (b'{"prompt": "\\ud800"}', 400, "surrogates not allowed"),
    (b'{"prompt": ""}', 400, "the prompt has 0 tokens"),
    (b'{"prompt": "a", "max_tokens": -1}', 400, f"max_tokens is -1; give an integer from 1 to {POSITIONS}"),
    (b'{"prompt": "a", "max_tokens": "many"}', 400, "max_tokens is"),
    (b'{"prompt": "a", "temperature": NaN}', 400, "NaN"),
    (b'{"prompt": "a", "model": "gpt-4"}', 404, "this server has"),
    (b'{"prompt": "a", "n": 3}', 400, "n is 3; give null or 1"),
    (b'{"prompt": "a", "generation_config": "{}"}', 400, "exchange the cache"),
    (b'{"prompt": "a", "colour": "red"}', 422, "colour"),
]


def post(server: Server, path: str, body: bytes, method: str = "POST") -> tuple[int, str]:
    asked = urllib.request.Request(
        f"http://{server.place[0]}:{server.place[1]}{path}",
        body if method == "POST" else None,
        {"Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(("body", "status", "said"), MALFORMED)
def test_a_malformed_request_is_told_what_is_wrong(body: bytes, status: int, said: str, server: Server) -> None:
    code, text = post(server, "/v1/completions", body)
    assert code == status
    assert said in text.replace('\\"', '"')
    assert "Traceback" not in text


def test_other_paths_and_methods_are_told_what_is_served(server: Server) -> None:
    for path in ("/reset", "/load_model", "/v1/responses", "/v1/audio/transcriptions", "/openapi.json"):
        code, text = post(server, path, b'{"model": "other"}')
        assert code == 404 and "/v1/completions" in text
    assert post(server, "/v1/completions", b"", method="GET")[0] == 405


def test_a_chat_that_its_template_refuses_is_a_bad_request(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="a tool cannot begin"):
        server.client.chat.completions.create(model="tiny", messages=[{"role": "tool", "content": "a"}])


@pytest.mark.parametrize("stream", [False, True])
def test_too_much_is_refused_and_the_next_is_answered(stream: bool, server: Server, sparse: Writes) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        server.client.completions.create(model="tiny", prompt="a" * 10_000_000, stream=stream)
    assert caught.value.status_code == 413
    assert "over the limit of 100000 bytes" in str(caught.value)
    assert complete(server, "next", 4) == sparse("next", 4)


def test_a_prompt_beyond_the_context_is_refused_and_an_answer_ends_with_it(folder: Path, sparse: Writes) -> None:
    """--pattern and --name stand above what the folder says."""
    with served(folder, "--max-context", "20", "--pattern", "Window(6) | Sinks(1)", "--name", "small") as server:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="the prompt has 20 tokens"):
                server.client.completions.create(model="small", prompt="a" * 20, stream=stream)
        made = server.client.completions.create(model="small", prompt="a" * 12)
        assert (made.choices[0].text, made.choices[0].finish_reason) == (sparse("a" * 12, 8), "length")


def test_sigterm_ends_what_is_under_way_and_the_process(folder: Path, sparse: Writes) -> None:
    """An answer that the grace suffices for is whole, an endless stream is cut, who waits is told, and 143 is left."""
    with served(folder, "--grace", "3") as server, ThreadPoolExecutor(8) as pool, ExitStack() as last:
        last.callback(server.process.kill)  # where the test fails, nobody waits for the endless
        asked = {"model": "tiny", "prompt": "short", "max_tokens": 100}
        short = last.enter_context(server.client.completions.create(**asked, stream=True))
        first = next(iter(short)).choices[0].text
        endless = [pool.submit(streamed, server, "endless", ENDLESS) for _ in range(4)]
        waiting = [pool.submit(complete, server, "waiting", ENDLESS) for _ in range(4)]
        time.sleep(0.5)  # so that they are on their way
        server.process.send_signal(signal.SIGTERM)
        assert first + "".join(chunk.choices[0].text for chunk in short) == sparse("short", 100)
        assert server.process.wait(timeout=PATIENCE) == 128 + signal.SIGTERM
        assert all(isinstance(job.exception(), openai.InternalServerError) for job in waiting)
        assert all("stopping" in str(job.exception()) for job in waiting)
        assert all(job.exception() is not None for job in endless)
        assert "Traceback" not in server.log.read_text()
        with suppress(ConnectionError), socket.create_connection(server.place, timeout=PATIENCE):
            pytest.fail("something still listens")
