"""Finds the command, runs it, and turns whatever happens into an exit code and one clear message.

A command's module, its flags and torch are imported only when that command runs: `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import NoReturn

FAILURE, USAGE = 1, 2
STOPPED_BY_SIGNAL = 128  # shells add the signal's number: 130 for Ctrl-C, 141 for a closed pipe, 143 for SIGTERM

COMMANDS = {
    "train": "train a GPT-2 on text, or resume a run",
    "prepare": "make tokens of a text, for runs to train on",
    "generate": "write on from a prompt with a trained model",
    "convert": "choose a sparse pattern for each head of a dense model, by the attention that it keeps",
    "serve": "answer OpenAI's clients with a sparse model of Hugging Face",
    "bench": "measure sparse attention beside dense attention and other libraries",
    "show": "draw a pattern in the terminal and print its plan",
    "doctor": "say which backend each feature will use on this machine, and why",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0 done · 1 failed · 2 the command line is wrong · 130 Ctrl-C · 141 the reader has gone · 143 SIGTERM
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return STOPPED_BY_SIGNAL + signal.SIGINT
    except BrokenPipeError:
        _forget_output()
        return STOPPED_BY_SIGNAL + signal.SIGPIPE
    except Exception as error:
        if debug:
            raise
        print(f"gossamer: {described(error)}", file=sys.stderr)
        return FAILURE


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        return _run_command(name, arguments[1:])
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        from ..machine import installed

        print(f"gossamer {installed('gossamer') or 'from a source tree'}")
        return 0
    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(COMMANDS)}"
    print(f"gossamer: there is no command {name!r}; {hint}", file=sys.stderr)
    return USAGE


def _run_command(name: str, flags: list[str]) -> int:
    from .flags import WrongUsage

    try:
        import_module(f".{name}", __package__).run(flags)
    except WrongUsage as error:
        print(f"gossamer {name}: {error}\ngossamer {name} --help lists the flags", file=sys.stderr)
        return USAGE
    return 0


def overview() -> str:
    """What `gossamer --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: gossamer COMMAND [FLAGS]\n\n"
        "Sparse attention for transformers: say who may see whom, then train, run and look at it.\n\n"
        f"{commands}\n\n"
        "gossamer COMMAND --help lists the flags of a command; each takes --debug, which logs what is\n"
        "planned and run. gossamer --version prints the version."
    )


def described(error: Exception) -> str:
    """The error in one message: its own words, and the kind of error where those do not say it."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed; install it with: pip install {error.name.partition('.')[0]}"
    if isinstance(error, ValueError | OSError | RuntimeError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(STOPPED_BY_SIGNAL + number)


def _forget_output() -> None:
    # What is still buffered has nowhere to go, and Python would complain about it at exit.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
