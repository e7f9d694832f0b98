"""Generation one request after another in the engine's thread, which leaves requests that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotIdle
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cli.serving.utils import GenerateManager, GenerationState

from .gateway import when_over
from .request_rules import Refusal

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
    from transformers.cli.serving.utils import DirectStreamer

SECONDS_TO_STOP = 3.0
"""How long a step of generation that is under way at the end may still take."""


class Turns(GenerateManager):
    """The engine's single thread of generation, one request after another, each within the model's context."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self._context = context

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | PreTrainedTokenizerFast,
        inputs: dict,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, DirectStreamer]:
        """As the engine does it, after the request was made to fit the context.

        The engine ends a generation when the stream of its words is closed, which does not happen where its client
        goes before the first one was asked for: the end of the request does it too.
        """
        self._fit(inputs, gen_config)
        queue, streamer = super().generate_streaming(model, processor, inputs, gen_config, request_id, response_parser)
        when_over(streamer.cancel)
        return queue, streamer

    async def generate_non_streaming(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | PreTrainedTokenizerFast,
        inputs: dict,
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, torch.Tensor]:
        """As the engine does it, except that a cancelled request ends its generation too."""
        self._fit(inputs, gen_config)
        listener = Listener()
        settings = {**inputs, "generation_config": gen_config, "tokenizer": processor, "streamer": listener}
        generation = self.submit(cast(Callable, model.generate), **settings)
        generation.add_done_callback(lambda done: listener.end_of_generation())
        try:
            await listener.ended.wait()
        finally:
            listener.leave()
        made = generation.result()[0, inputs["input_ids"].shape[-1] :]
        text = cast(str, processor.decode(made, skip_special_tokens=True))
        return text, inputs["input_ids"].shape[-1], made

    def settled(self) -> bool:
        """Whether the thread is idle, which it may take SECONDS_TO_STOP to become."""
        try:
            self.submit(int).result(timeout=SECONDS_TO_STOP)
        except NotIdle:
            return False
        return True

    def _fit(self, inputs: dict, gen_config: GenerationConfig) -> None:
        """Lets an answer end where the context ends, as its finish_reason "length" will say."""
        tokens = inputs["input_ids"].shape[-1]
        if not 0 < tokens < self._context:
            fix = f"give at least one token, and fewer than the context of {self._context}"
            raise Refusal(400, f"the prompt has {tokens} tokens; {fix}")
        gen_config.max_new_tokens = min(gen_config.max_new_tokens, self._context - tokens)
        if gen_config.sequence_bias:  # the engine leaves them as JSON wrote them, and generate takes no integers
            gen_config.sequence_bias = {token: float(bias) for token, bias in gen_config.sequence_bias.items()}


class Gone(Exception):
    """Nobody waits for the answer that is being generated."""


class Listener:
    """Stands between a request of the event loop and its generation in the thread: each can tell the other to end."""

    def __init__(self) -> None:
        self._loop, self._left = asyncio.get_running_loop(), threading.Event()
        self.ended = asyncio.Event()

    def leave(self) -> None:
        """From now on `put` raises, which ends the generation."""
        self._left.set()

    def put(self, value: torch.Tensor) -> None:
        """Takes what generate has drawn; the answer has it as a whole later."""
        if self._left.is_set():
            raise Gone

    def end(self) -> None:
        """Takes the end of what generate has drawn."""

    def end_of_generation(self) -> None:
        """Sets `ended`, whether generation has succeeded, failed or been left."""
        with suppress(RuntimeError):  # the loop is closed: the server has stopped, and nobody waits
            self._loop.call_soon_threadsafe(self.ended.set)


class InTurns(GenerationState):
    """The engine's choice of how to generate: always in turns, and never in continuous batches."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.turns = Turns(context)

    def thread_of(self, model_id: str, use_cb: bool = False) -> Turns:
        """The thread that generates, which is the same for all that is asked."""
        return self.turns

    get_manager = thread_of  # the engine's name for it
