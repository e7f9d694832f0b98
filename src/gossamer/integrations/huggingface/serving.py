"""A sparse model behind the engine of `transformers serve`: the engine answers, this hands it the model.

The engine has no argument for a model that is loaded already. Its parts have, and are joined here as `transformers
serve` joins them, two of them with one method of their own.
"""

from __future__ import annotations

import inspect
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server

from ...patterns.base import Pattern
from .gateway import Gateway, Limits
from .loading import load_sparse
from .request_rules import ModelCard, Refusal
from .turns import InTurns

if TYPE_CHECKING:
    from fastapi import Request
    from transformers import PreTrainedModel


def load(
    folder: Path, pattern: Pattern | None, *, device: torch.device, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model and the tokenizer of a local folder, the model sparse by `pattern` or as its configuration says.

    Raises:
        ValueError: The tokenizer is one of those written in Python, which cannot stream.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{folder}: the tokenizer is a {type(tokenizer).__name__}; save one with a tokenizer.json")
    return load_sparse(folder, pattern, device=device, dtype=dtype), tokenizer


def card_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, *, context: int | None) -> ModelCard:
    """What clients may ask of the model, whose context is `context` where that is given.

    Raises:
        ValueError: The context is more than the model has positions, or neither is known.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = context or positions
    if context is None:
        raise ValueError(f"{name}: the configuration has no max_position_embeddings; give --max-context")
    if positions is not None and context > positions:
        raise ValueError(f"max_context is {context} and the model has {positions} positions; give at most those")
    return ModelCard(name, context, chats=tokenizer.chat_template is not None)


def serve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    listener: socket.socket,
    *,
    card: ModelCard,
    limits: Limits,
    grace: int,
) -> None:
    """Answers requests at the bound `listener` until a signal comes, which ends as this process's handler ends it.

    One token is drawn before the first request is taken, so a model that cannot run is not served. After the signal
    answers under way have `grace` seconds; then streams are cut and requests that wait are refused. A single step
    that takes longer still, such as a long prompt's, is not waited for: the process ends within it.
    """
    cast(Callable, model.generate)(torch.zeros(1, 1, dtype=torch.int64, device=model.device), max_new_tokens=1)
    state = InTurns(card.context)
    app = Gateway(application(model, tokenizer, card, state), card, limits)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=grace)
    listener.listen(config.backlog)
    print(f"serving {card.name} on {address(listener)}", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except (SystemExit, KeyboardInterrupt) as end:
        if not state.turns.settled():
            _leave(end)
        raise


def _leave(end: SystemExit | KeyboardInterrupt) -> NoReturn:
    """Ends the process at once: Python's own way out aborts it where a thread computes on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(end.code or 0) if isinstance(end, SystemExit) else 128 + signal.SIGINT)


def address(listener: socket.socket) -> str:
    """What a client's `base_url` is."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class Served(ModelManager):
    """The engine's store of models, which holds one that is loaded already, and loads no other."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
        self._pair = model, tokenizer
        super().__init__(force_model=name)

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name itself, which has no revision."""
        return model_id

    def load_model_and_processor(
        self,
        model_id_and_revision: str,
        progress_callback: Callable | None = None,
        tqdm_class: type | None = None,
        gguf_file: str | None = None,
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """The model and the tokenizer, whatever name is asked for: the engine asks for its own only."""
        return self._pair


def application(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: ModelCard, turns: InTurns) -> FastAPI:
    """The engine's web application for this model alone."""
    served = Served(model, tokenizer, card.name)
    ours = {
        "model_manager": served,
        "chat_handler": ChatCompletionHandler(served, turns),
        "completion_handler": CompletionHandler(served, turns),
        "generation_state": turns,
    }
    handlers = [name for name in inspect.signature(build_server).parameters if name.endswith("_handler")]
    build: Callable[..., FastAPI] = build_server
    app = build(**(dict.fromkeys(handlers) | ours))  # the gateway lets nothing through to the others
    for kind in (Refusal, HTTPException, TemplateError):
        app.add_exception_handler(kind, _refused)
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """The error in the form that OpenAI's clients show."""
    match error:
        case Refusal():
            refusal = error
        case HTTPException():
            refusal = Refusal(error.status_code, str(error.detail))
        case _:
            refusal = Refusal(400, f"the chat template of the model refuses the messages: {error}", "messages")
    return JSONResponse(refusal.body, status_code=refusal.status)
