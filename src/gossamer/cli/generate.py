"""`gossamer generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from ..generation_config import SamplingConfig
from .flags import Command, Unprefixed, WrongUsage, parsed
from .writer import Vocabulary, Writer, is_of_transformers, own_writer, transformers_writer

STANDARD_INPUT = "-"
HALF_A_CHARACTER = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Generate(Command):
    """Write on from prompts with a trained model, token by token."""

    model: Path
    """A run's folder, one of its checkpoints, or a folder with a model of Hugging Face and its tokenizer."""
    prompt: str = STANDARD_INPUT
    """Text to go on from; - reads standard input."""
    prompt_file: Path | None = None
    """File with the text to go on from, instead of --prompt."""
    prompts: Path | None = None
    """File with a prompt on each line: all are written on from at once, and printed when all have ended."""
    pattern: str | None = None
    """What a Hugging Face model's layers are to see, such as 'Window(1024) | Sinks(4)'; by default what its
    configuration says."""
    endless: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write without end, until interrupted: for models whose positions have no end."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    sampling: Annotated[SamplingConfig, Unprefixed] = field(default_factory=SamplingConfig)


def run(arguments: Sequence[str]) -> None:
    """Prints the prompt and then each piece of text as soon as the model has written it."""
    command = parsed(Generate, arguments)
    require_one_prompt(command)
    writer = loaded(command)
    texts = read_prompts(command)
    sampling = replace(command.sampling, stop=command.sampling.stop or writer.stop)
    if command.endless:
        sampling = replace(sampling, max_new_tokens=None, stop=())
        if len(texts) > 1:
            raise WrongUsage("--endless is for one prompt: several texts are printed when all have ended; give one")
    prompts = [writer.vocabulary.encode(text) or list(writer.begin) for text in texts]
    columns = writer.stream(prompts, sampling)
    if len(texts) == 1:
        new = (int(column[0]) for column in columns)
        show(texts[0], decoded(writer.vocabulary, new, behind=prompts[0], stop=sampling.stop))
        return
    rows = list(zip(*(column.tolist() for column in columns), strict=True)) or [()] * len(texts)
    for text, prompt, row in zip(texts, prompts, rows, strict=True):
        show(text, decoded(writer.vocabulary, row, behind=prompt, stop=sampling.stop))


def loaded(command: Generate) -> Writer:
    """The model that the command names.

    Raises:
        WrongUsage: A pattern is given for a model that has its own.
    """
    from ..training.config import RunConfig
    from ..training.distributed import pick_device

    device = pick_device(RunConfig(device=command.device))
    if is_of_transformers(command.model):
        return transformers_writer(command.model, command.pattern, device)
    if command.pattern is not None:
        raise WrongUsage("--pattern is for models of Hugging Face; this one's own configuration says what is seen")
    return own_writer(*locate(command.model), device)


def show(prompt: str, pieces: Iterable[str]) -> None:
    """Prints a text as it comes."""
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def locate(model: Path) -> tuple[Path, Path]:
    """Where the weights are, and where the tokenizer that belongs to them is.

    Raises:
        FileNotFoundError: There is nothing at `model`, or no tokenizer with it.
        CheckpointError: It is a run whose checkpoints are all damaged.
    """
    from ..tokenizer import FILE, GPT2_FILES
    from ..training.checkpoint_folders import FOLDER, latest

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


def require_one_prompt(command: Generate) -> None:
    """Sees that the prompt is given in one way.

    Raises:
        WrongUsage: It is given in several.
    """
    given = {
        "--prompt": command.prompt != STANDARD_INPUT,
        "--prompt-file": command.prompt_file,
        "--prompts": command.prompts,
    }
    flags = [flag for flag, value in given.items() if value]
    if len(flags) > 1:
        raise WrongUsage(f"{' and '.join(flags)} are both given; give one of them")


def read_prompts(command: Generate) -> list[str]:
    """The texts that the model is to go on from.

    Raises:
        WrongUsage: There is none.
    """
    if command.prompts is not None:
        text = text_of(command.prompts.read_bytes(), str(command.prompts)).replace("\r\n", "\n")
        if not text:
            raise WrongUsage(f"--prompts {command.prompts} is empty; write a prompt on each line")
        return text.removesuffix("\n").split("\n")  # splitlines would cut prompts at form feeds and the like, too
    if command.prompt_file is not None:
        return [text_of(command.prompt_file.read_bytes(), str(command.prompt_file))]
    if command.prompt != STANDARD_INPUT:
        return [command.prompt]
    if sys.stdin.isatty():
        print("type the prompt, and end it with Ctrl-D", file=sys.stderr)
    return [text_of(sys.stdin.buffer.read(), "standard input")]


def text_of(content: bytes, source: str) -> str:
    """The text in UTF-8 that was read from `source`.

    Raises:
        ValueError: It is none; the message names the source and the byte.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text (byte {error.start}); convert it first") from error


def decoded(
    vocabulary: Vocabulary, ids: Iterable[int], *, behind: Sequence[int] = (), stop: Sequence[int]
) -> Iterator[str]:
    """The text of the ids that follow those `behind`, as soon as it is whole (a character may need several), up to a
    stop token. Many vocabularies drop the space before the first id that they are given, so none is decoded alone."""
    before, waiting = list(behind), list[int]()
    for token in ids:
        if token in stop:
            break
        waiting.append(token)
        text = _text_behind(vocabulary, before, waiting)
        if not text.endswith(HALF_A_CHARACTER):
            yield text
            before, waiting = waiting, []
    if waiting:
        yield _text_behind(vocabulary, before, waiting)


def _text_behind(vocabulary: Vocabulary, before: list[int], new: list[int]) -> str:
    return vocabulary.decode(before + new)[len(vocabulary.decode(before)) :]
