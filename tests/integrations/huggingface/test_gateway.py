"""The gateway before engines that answer, wait or fail as a test wants; no server and no model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

pytest.importorskip("starlette", reason="the gateway needs gossamer[serve]")

from gossamer.integrations.huggingface.gateway import Gateway, Limits
from gossamer.integrations.huggingface.request_rules import ModelCard

CARD = ModelCard("tiny", context=100, chats=True)
ASKED = json.dumps({"prompt": "a"}).encode()
Engine = Callable[[dict, Callable, Callable], Awaitable[None]]


class Client:
    """Sends its parts, then waits until it is told to hang up; keeps what it is sent."""

    def __init__(self, *parts: bytes, declares: int | None = None) -> None:
        self.parts = list(parts)
        self.headers = [] if declares is None else [(b"content-length", str(declares).encode())]
        self.hangs_up, self.sent = asyncio.Event(), []

    async def receive(self) -> dict:
        if self.parts:
            return {"type": "http.request", "body": self.parts.pop(0), "more_body": bool(self.parts)}
        await self.hangs_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    async def ask(self, gateway: Gateway, path: str = "/v1/completions") -> Client:
        scope = {"type": "http", "method": "POST", "path": path, "headers": self.headers}
        await asyncio.wait_for(gateway(scope, self.receive, self.send), timeout=30)
        return self


class Waiting:
    """An engine that says how far it is, and answers only when it is let."""

    def __init__(self, begins: bool = False) -> None:
        self.begins = begins
        self.under_way, self.may_answer = asyncio.Event(), asyncio.Event()
        self.cancelled = 0
        self.body = b""

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        self.body = (await receive())["body"]
        if self.begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        self.under_way.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if not self.begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})


def gateway(engine: Engine, body: int = 1000, requests: int = 8, arrival: float = 30.0) -> Gateway:
    return Gateway(engine, CARD, Limits(body, requests, arrival))


def test_the_engine_gets_the_whole_body_and_the_client_the_answer() -> None:
    async def story() -> None:
        engine, client = Waiting(), Client(ASKED[:5], ASKED[5:])
        engine.may_answer.set()
        await client.ask(gateway(engine))
        assert engine.body == ASKED
        assert (client.status, client.sent[1]["body"]) == (200, b"answer")

    asyncio.run(story())


@pytest.mark.parametrize("declares", [None, 2000])
def test_a_body_over_the_limit_is_not_read_on(declares: int | None) -> None:
    async def story() -> None:
        client = Client(*[b"x" * 100] * 20, declares=declares)
        await client.ask(gateway(Waiting()))
        assert client.status == 413
        assert len(client.parts) == (20 if declares else 9)

    asyncio.run(story())


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def story() -> None:
        assert (await Client().ask(gateway(Waiting(), arrival=0.01))).status == 408

    asyncio.run(story())


def test_a_client_that_goes_before_its_body_came_is_forgotten() -> None:
    async def story() -> None:
        client = Client()
        client.hangs_up.set()
        assert (await client.ask(gateway(Waiting()))).sent == []

    asyncio.run(story())


@pytest.mark.parametrize("begins", [False, True])
def test_the_engine_is_cancelled_when_its_client_goes(begins: bool) -> None:
    async def story() -> None:
        engine, client = Waiting(begins), Client(ASKED)
        request = asyncio.ensure_future(client.ask(gateway(engine)))
        await engine.under_way.wait()
        client.hangs_up.set()
        await request
        assert engine.cancelled == 1

    asyncio.run(story())


@pytest.mark.parametrize(("begins", "said"), [(False, [503]), (True, [200])])
def test_a_server_that_stops_refuses_who_waits_and_cuts_who_reads(begins: bool, said: list[int]) -> None:
    async def story() -> None:
        engine, client = Waiting(begins), Client(ASKED)
        request = asyncio.ensure_future(client.ask(gateway(engine)))
        await engine.under_way.wait()
        request.cancel()
        await asyncio.wait([request])
        assert engine.cancelled == 1
        assert [message["status"] for message in client.sent if "status" in message] == said
        assert any("body" in message for message in client.sent) != begins

    asyncio.run(story())


def test_more_requests_than_may_wait_are_told_to_come_again() -> None:
    async def story() -> None:
        engine = Waiting()
        door = gateway(engine, requests=2)
        waiting = [asyncio.ensure_future(Client(ASKED).ask(door)) for _ in range(2)]
        await engine.under_way.wait()
        assert (await Client(ASKED).ask(door)).status == 503
        engine.may_answer.set()
        await asyncio.gather(*waiting)
        assert (await Client(ASKED).ask(door)).status == 200

    asyncio.run(story())


def test_a_failure_of_the_engine_is_not_swallowed() -> None:
    async def engine(scope: dict, receive: Callable, send: Callable) -> None:
        raise ZeroDivisionError

    async def story() -> None:
        with pytest.raises(ZeroDivisionError):
            await Client(ASKED).ask(gateway(engine))

    asyncio.run(story())
