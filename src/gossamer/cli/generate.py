"""`gossamer generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..generation_config import SamplingConfig
from .flags import Command, Unprefixed, WrongUsage, parsed

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

STANDARD_INPUT = "-"
HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Write on from a prompt with a trained model, token by token."""

    model: Path
    """A run's folder, one of its checkpoints, or a folder with a GPT-2 of Hugging Face and its tokenizer."""
    prompt: str = STANDARD_INPUT
    """Text to go on from; - reads standard input."""
    prompt_file: Path | None = None
    """File with the text to go on from, instead of --prompt."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    sampling: Annotated[SamplingConfig, Unprefixed] = field(default_factory=SamplingConfig)


def run(arguments: Sequence[str]) -> None:
    """Prints the prompt and then each piece of text as soon as the model has written it."""
    command = parsed(Generate, arguments)
    import torch

    from ..generation import stream
    from ..models.gpt2 import GPT2
    from ..tokenizer import load_tokenizer
    from ..training.config import RunConfig
    from ..training.loop import pick_device

    weights, vocabulary = locate(command.model)
    tokenizer, prompt = load_tokenizer(vocabulary), read_prompt(command)
    device = pick_device(RunConfig(device=command.device))
    model = GPT2.load(weights, device=device)
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    sampling = replace(command.sampling, stop=command.sampling.stop or (tokenizer.end_of_text,))
    new = stream(model, torch.tensor([ids], device=device), sampling)
    print(prompt, end="", flush=True)
    for text in decoded(tokenizer, (int(token) for token in new), stop=sampling.stop):
        print(text, end="", flush=True)
    print()


def locate(model: Path) -> tuple[Path, Path]:
    """Where the weights are, and where the tokenizer that belongs to them is.

    Raises:
        FileNotFoundError: There is nothing at `model`, or no tokenizer with it.
        CheckpointError: It is a run whose checkpoints are all damaged.
    """
    from ..tokenizer import FILE, GPT2_FILES
    from ..training.checkpoint import FOLDER, latest

    if not model.exists():
        raise FileNotFoundError(f"--model {model} does not exist; give a run's folder, such as runs/gpt2")
    weights = latest(model) if (model / FOLDER).is_dir() else model
    beside = model if model.is_dir() else model.parent
    places = [
        beside / "tokenizer",
        beside,
        beside.resolve().parent.parent / "tokenizer",
    ]  # run, folder, checkpoint
    files = {FILE, *(vocabulary for vocabulary, _ in GPT2_FILES)}
    for place in places:
        if any((place / file).is_file() for file in files):
            return weights, place
    raise FileNotFoundError(f"--model {model} has no tokenizer; put tokenizer.json, or GPT-2's two files, beside it")


def read_prompt(command: Generate) -> str:
    """The text that the model is to go on from."""
    if command.prompt_file is not None:
        if command.prompt != STANDARD_INPUT:
            raise WrongUsage("--prompt and --prompt-file are both given; give one of them")
        return text_of(command.prompt_file.read_bytes(), str(command.prompt_file))
    if command.prompt != STANDARD_INPUT:
        return command.prompt
    if sys.stdin.isatty():
        print("type the prompt, and end it with Ctrl-D", file=sys.stderr)
    return text_of(sys.stdin.buffer.read(), "standard input")


def text_of(content: bytes, source: str) -> str:
    """The text in UTF-8 that was read from `source`.

    Raises:
        ValueError: It is none; the message names the source and the byte.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text (byte {error.start}); convert it first") from error


def decoded(tokenizer: Tokenizer, ids: Iterable[int], *, stop: Sequence[int]) -> Iterator[str]:
    """The text of the ids as soon as it is whole (a character may need several), up to a stop token."""
    waiting: list[int] = []
    for token in ids:
        if token in stop:
            break
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if not text.endswith(HALF_A_CHARACTER):
            yield text
            waiting.clear()
    if waiting:
        yield tokenizer.decode(waiting)
