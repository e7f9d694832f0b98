"""Stands before the engine's web application: refuses what that would stumble over, and ends what nobody waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .request_rules import RULES, ModelCard, Refusal, check

DISCONNECT: Message = {"type": "http.disconnect"}


@dataclass(frozen=True)
class Limits:
    """How much may be asked at once."""

    body: int
    """Bytes of one request."""
    requests: int
    """Requests that are answered or wait to be."""
    arrival: float = 30.0
    """Seconds in which the body of a request must have arrived."""


class Gateway:
    """An ASGI application that hands a request to `engine` only where that can answer it.

    Everything else gets an answer in the form of OpenAI's errors. A request whose client has gone is cancelled
    within the engine too, streamed or not.
    """

    def __init__(self, engine: ASGIApp, card: ModelCard, limits: Limits) -> None:
        self._engine, self._card, self._limits = engine, card, limits
        self._requests = 0
        self._since = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection's request, as ASGI defines it."""
        if scope["type"] != "http":
            return await self._engine(scope, receive, send)
        asked = scope["method"], scope["path"]
        if asked == ("GET", "/health"):
            return await self._engine(scope, receive, send)
        if asked == ("GET", "/v1/models"):
            return await JSONResponse({"object": "list", "data": [self._model]})(scope, receive, send)
        if asked == ("GET", f"/v1/models/{self._card.name}"):
            return await JSONResponse(self._model)(scope, receive, send)
        started = Started(send)
        try:
            await self._complete(scope, receive, started)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, started)
        except asyncio.CancelledError:  # the server stops; a stream that has begun is cut, so that it looks unfinished
            if not started.yes:
                await _refuse(Refusal(503, "the server is stopping; ask again later"), scope, receive, started)

    @property
    def _model(self) -> dict[str, object]:
        return {"id": self._card.name, "object": "model", "created": self._since, "owned_by": "gossamer"}

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path not in RULES:
            raise Refusal(404, f"{path} is not served; use {', '.join(RULES)}, /v1/models or /health")
        if method != "POST":
            raise Refusal(405, f"the method is {method}; use POST for {path}")
        if self._requests >= self._limits.requests:
            raise Refusal(503, f"{self._requests} requests are waiting already; ask again later")
        self._requests += 1
        try:
            body = await self._body(scope, receive)
            if body is not None:
                check(path, body, self._card)
                await _until_done_or_gone(self._engine, scope, body, receive, send)
        finally:
            self._requests -= 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None where its client has gone."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._limits.arrival):
                while more:
                    if max(len(body), int(declared)) > self._limits.body:
                        raise Refusal(413, f"the body is over the limit of {self._limits.body} bytes; send less")
                    message = await receive()
                    if message == DISCONNECT:
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError as error:
            seconds = self._limits.arrival
            raise Refusal(408, f"the body has not arrived within {seconds:g} seconds; send it sooner") from error
        return bytes(body)


class Started:
    """Sends on, and remembers whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send, self.yes = send, False

    async def __call__(self, message: Message) -> None:
        """Sends one message of an answer."""
        self.yes = True
        await self._send(message)


_ENDINGS: ContextVar[list[Callable[[], None]] | None] = ContextVar("endings", default=None)


def when_over(act: Callable[[], None]) -> None:
    """Calls `act` when the request that is being answered is over, whether its answer was whole, cut or never begun."""
    if (endings := _ENDINGS.get()) is not None:
        endings.append(act)


async def _until_done_or_gone(engine: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Lets the engine answer, and cancels it as soon as the client has gone or the caller is cancelled."""
    gone = asyncio.Event()
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def received() -> Message:
        for message in given:
            return message
        await gone.wait()
        return DISCONNECT

    endings: list[Callable[[], None]] = []
    _ENDINGS.set(endings)
    answer = asyncio.ensure_future(engine(scope, received, send))
    absence = asyncio.ensure_future(_absence(receive))
    try:
        await asyncio.wait({answer, absence}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.set()
        absence.cancel()
        answer.cancel()  # does nothing where it is done
        try:
            await asyncio.wait({answer, absence})
        finally:
            for act in endings:
                act()
    if not answer.cancelled():
        answer.result()


async def _absence(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != DISCONNECT["type"]:
        pass


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(refusal.body, status_code=refusal.status)(scope, receive, send)
