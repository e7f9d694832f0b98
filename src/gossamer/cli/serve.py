"""`gossamer serve`."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from ..models.config_file import FILE, SPARSE
from ..patterns import parse
from ..patterns.base import Pattern, require_integer
from .flags import Command, WrongUsage, parsed

ENGINE = ("transformers", "fastapi", "uvicorn", "openai", "pydantic")
"""What `transformers serve` needs."""


@dataclass(frozen=True, kw_only=True)
class Serve(Command):
    """Answer OpenAI's clients with a sparse model of Hugging Face; `transformers serve` is the engine.

    SIGTERM and Ctrl-C end it within the grace, and the exit code is 143 or 130.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder of a saved model with its tokenizer."""
    pattern: str | None = None
    """What every layer is to see, such as "Window(256) | Sinks(4)"; by default what the model was saved with."""
    name: str | None = None
    """What clients call the model; by default the folder's name."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    dtype: str = "auto"
    """auto (as saved), float32, bfloat16, float16."""
    max_context: int | None = None
    """Tokens of prompt and answer together; by default, and at most, the positions of the model."""
    max_body: int = 4_194_304
    """Bytes of a request."""
    max_requests: int = 256
    """Requests that are answered or wait to be; further ones are told to come again."""
    grace: int = 5
    """Seconds that answers under way have after SIGTERM."""
    continuous_batching: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Refused: the engine batches only with attention of its own."""

    def __post_init__(self) -> None:
        for field, least in (("port", 0), ("max_body", 1), ("max_requests", 1), ("grace", 0)):
            require_integer("serve", field, getattr(self, field), least=least)
        if self.max_context is not None:
            require_integer("serve", "max_context", self.max_context, least=2)
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"serve: dtype is {self.dtype!r}; give auto, float32, bfloat16 or float16")
        if self.port > 65535:
            raise ValueError(f"serve: port is {self.port}; give at most 65535")
        if self.continuous_batching:
            raise ValueError(
                "serve: continuous_batching is on, but the engine batches with eager, sdpa or flash attention over a "
                "paged cache of its own and refuses any other; leave it out, and requests are answered in turns"
            )


def run(arguments: Sequence[str]) -> None:
    """Serves the model until a signal comes."""
    command = parsed(Serve, arguments)
    pattern = read_pattern(command.pattern)
    require_engine()
    require_model(command.model, pattern)
    with bound(command.host, command.port) as listener:
        _serve(command, pattern, listener)


def _serve(command: Serve, pattern: Pattern | None, listener: socket.socket) -> None:
    from ..integrations.huggingface.gateway import Limits
    from ..integrations.huggingface.serving import card_of, load, serve
    from ..training.config import RunConfig
    from ..training.distributed import pick_device

    logging.getLogger("transformers").setLevel(logging.INFO if command.debug else logging.ERROR)
    device = pick_device(RunConfig(device=command.device))
    model, tokenizer = load(command.model, pattern, device=device, dtype=command.dtype)
    name = command.name or command.model.resolve().name
    card = card_of(model, tokenizer, name, context=command.max_context)
    limits = Limits(command.max_body, command.max_requests)
    serve(model, tokenizer, listener, card=card, limits=limits, grace=command.grace)


def read_pattern(text: str | None) -> Pattern | None:
    """The pattern that the command line gives."""
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise WrongUsage(str(error)) from error


def require_engine() -> None:
    """Returns where everything that the engine needs is installed."""
    missing = [package for package in ENGINE if find_spec(package) is None]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not installed; run pip install 'gossamer[serve]'")
    if find_spec("transformers.cli.serving") is None:
        raise RuntimeError("this transformers has no transformers.cli.serving; run pip install 'gossamer[serve]'")


def require_model(folder: Path, pattern: Pattern | None) -> None:
    """Returns where the folder has a model and something says its pattern; reads no weights.

    Raises:
        FileNotFoundError: There is no model in the folder.
        ValueError: Neither `pattern` nor the configuration says what the model is to see.
    """
    config = folder / FILE
    if not config.is_file():
        raise FileNotFoundError(f"MODEL {folder} has no {FILE}; give the folder of a saved model")
    try:
        settings = json.loads(config.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is no JSON text ({error}); save the model again") from error
    if pattern is None and SPARSE not in settings:
        raise ValueError(
            f"{config} has no {SPARSE}, so the model would run dense; give --pattern, such as 'Window(256)', or "
            "save the model after sparsify"
        )


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address, taken before the weights are read; nobody can connect yet.

    Raises:
        OSError: The address is another process's, or none of this machine's.
    """
    with ExitStack() as opened:
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = opened.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"cannot listen on {host}:{port} ({reason}); give another --port or --host") from error
        opened.pop_all()
    return listener
