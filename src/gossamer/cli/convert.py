"""`gossamer convert`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..models.config_file import OWN
from ..patterns import parse
from ..patterns.base import require_integer
from .flags import Command, parsed
from .generate import locate, text_of

if TYPE_CHECKING:
    from ..convert import Assignment, DenseModel


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Choose a pattern for each head of a dense model by the attention that it keeps, and write it down.

    The model reads a text; for each head is measured how much of its attention each candidate keeps; each head gets
    the candidate that keeps the most within the budget.
    """

    model: Path
    """Folder of a dense model: a decoder of Hugging Face, or a GPT-2 of Gossamer. It is not changed."""
    text: Path
    """File with the text to measure on, like the texts that the model will read."""
    budget: float = 0.25
    """Share of the pairs of dense causal attention that the average head may compute."""
    context: int | None = None
    """Tokens of a sequence; by default the model's positions, 2048 at most. Shares are those at this length."""
    samples: int = 8
    """Sequences to read, at most, spread evenly over the text."""
    candidates: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A pattern that heads may get; repeat for more. By default windows, strides and dense attention."""
    out: Path | None = None
    """New folder for the model with its sparse configuration; without it nothing is written."""
    plot: Path | None = None
    """Picture of the trade-off and of each head's pattern, as PNG, SVG or PDF."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"--budget is {self.budget}; give a share of the dense pairs, above 0 and at most 1")
        require_integer("convert", "samples", self.samples, least=1)
        if self.context is not None:
            require_integer("convert", "context", self.context, least=1)
        for text in self.candidates:
            if parse(text).head_cuts:
                raise ValueError(f"--candidates {text!r} differs between heads; give its groups one by one")
        if self.plot is not None and self.plot.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot is {self.plot}; give a name that ends in .png, .svg or .pdf")


def run(arguments: Sequence[str]) -> None:
    """Prints what each candidate keeps, what each layer gets and what other budgets would keep; then writes."""
    command = parsed(Convert, arguments)
    text = text_of(command.text.read_bytes(), str(command.text))
    from ..convert import save_chart, tables, tradeoff
    from ..convert.table import BUDGETS
    from .screen import show_tables

    model = opened(command)
    chosen = _assigned(command, model, text)
    show_tables(tables(chosen, tradeoff(chosen.measured, BUDGETS)))
    if command.plot is not None:
        save_chart(chosen, command.plot)
        print(f"written: {command.plot}")
    if command.out is not None:
        _write(model, chosen, command.out)


def opened(command: Convert) -> DenseModel:
    """The model, once it is sure that it can be written to --out.

    Raises:
        FileNotFoundError: There is no model, or no tokenizer with it.
        ValueError: It is no dense decoder.
    """
    from ..convert import open_model
    from ..convert.checkpoint import read_config
    from ..convert.writing import require_free
    from ..training.checkpoint_folders import FOLDER
    from ..training.config import RunConfig
    from ..training.distributed import pick_device

    if not command.model.is_dir():
        raise FileNotFoundError(f"--model {command.model} is no folder; give the folder of a model")
    weights = tokenizer = command.model
    if (command.model / FOLDER).is_dir() or OWN in read_config(command.model):
        weights, tokenizer = locate(command.model)
    model = open_model(weights, tokenizer=tokenizer, device=pick_device(RunConfig(device=command.device)))
    if command.out is not None:
        require_free(model, command.out)
    return model


def _assigned(command: Convert, model: DenseModel, text: str) -> Assignment:
    from ..convert import assign, default_candidates, measure, samples
    from ..convert.assignment import require_budget

    sequences = samples(model, text, command.context, most=command.samples)
    candidates = tuple(map(parse, command.candidates)) or default_candidates(sequences[0].shape[1])
    measured = measure(
        model,
        sequences,
        candidates,
        before=lambda share: require_budget(share, command.budget),
        # Beside the tables and not in them: a large model takes minutes.
        after=lambda done: print(f"measured {done} of {len(sequences)} sequences", file=sys.stderr),
    )
    return assign(measured, command.budget)


def _write(model: DenseModel, chosen: Assignment, out: Path) -> None:
    from ..convert import write_sparse
    from ..convert.writing import own_split

    write_sparse(model, chosen.patterns, out)
    print(f"written: {out}, whose config.json names each layer's pattern")
    split = own_split(model.config, chosen.patterns)
    if split is not None:
        print(f"GPT2.load reads the same choice: {split}")
    elif OWN in model.config:
        print(
            "no SparseAttentionConfig says this choice, so GPT2.load reads the dense model; "
            "the patterns are for transformers"
        )
