"""The report on a dense and a sparse training run of the same shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.table import Table

from ..atomic import write_file
from ..config import GPT2Config, SparseAttentionConfig
from ..machine import Machine, this_machine
from ..models.gpt2 import GPT2
from ..plan import plan
from ..tokenizer import load_tokenizer
from ..training.checkpoint_folders import latest
from ..training.config import TrainConfig
from ..training.data import TokenDataset
from ..training.journal import TOKENIZER
from ..training.metrics import FILE as METRICS
from ..training.metrics import Summary, read_metrics
from ..training.run_folder import CONFIG, tokens_folder
from .collect import attention_figure, layer_captures, read_run
from .data import CostFigure, ReportData, Sample

SPARSE = "sparse"
NUMBERS = ("tokens_per_second", "peak_memory_bytes", "validation_loss", "parameters")


def comparison(
    folder: str | Path,
    summaries: Mapping[str, Summary],
    *,
    sample: Sample,
    cost: CostFigure | None = None,
    command: str = "",
) -> ReportData:
    """Curves of every run, and the masks, captures and attention of the sparse one on held-out text.

    Args:
        folder: Holds the folder of each run in `summaries`, under its name there; one of them is "sparse".
        command: What was typed to make the runs.
    """
    folder = Path(folder)
    config = TrainConfig.from_toml(folder / SPARSE / CONFIG)
    model = GPT2.load(latest(folder / SPARSE))
    tokenizer = load_tokenizer(folder / SPARSE / TOKENIZER)
    length = config.model.context_size
    tokens, _ = next(TokenDataset(tokens_folder(config), "validation", context_size=length).in_order(1))
    sparse = model.config.sparse_config or SparseAttentionConfig().for_heads(model.config.n_head)
    return ReportData(
        title="Sparse beside dense attention",
        lead=_lead(config.model, sparse, summaries[SPARSE]),
        runs=tuple(read_run(name, folder / name, summary) for name, summary in summaries.items()),
        cost=cost,
        masks=plan(sparse.pattern(length), length, length, config.model.n_head),
        attention=attention_figure(model, tokens, [tokenizer.decode([int(token)]) for token in tokens[0]]),
        layers=layer_captures(model, tokens),
        sample=sample,
        facts=(("Command", command), *_facts(this_machine())),
    )


def write_numbers(folder: str | Path, summaries: Mapping[str, Summary]) -> None:
    """Writes the runs into `folder`: every step in `metrics.jsonl`, four numbers each in `summary.json`."""
    folder = Path(folder)
    rows = [{"run": name, **row} for name in summaries for row in read_metrics(folder / name / METRICS)]
    write_file(folder / METRICS, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    record: dict[str, object] = {
        name: {number: getattr(summary, number) for number in NUMBERS} for name, summary in summaries.items()
    }
    for shared in ("context", "steps"):
        (record[shared],) = {getattr(summary, shared) for summary in summaries.values()}
    write_file(folder / "summary.json", f"{json.dumps(record, indent=2)}\n".encode())


def comparison_table(summaries: Mapping[str, Summary]) -> Table:
    """The summaries side by side, for a terminal."""
    table = Table("", *summaries, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {
        "training speed, tokens/s": [f"{run.tokens_per_second:,.0f}" for run in summaries.values()],
        "peak memory, MiB": [f"{run.peak_memory_bytes / 2**20:,.0f}" for run in summaries.values()],
        "validation loss, nats per token": [f"{run.validation_loss:.3f}" for run in summaries.values()],
        "parameters": [f"{run.parameters:,}" for run in summaries.values()],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def _lead(shape: GPT2Config, sparse: SparseAttentionConfig, summary: Summary) -> str:
    length = shape.context_size
    size = f"{summary.parameters / 1e6:.1f} million parameters"
    layout = f"{shape.n_layer} layers, {shape.n_head} heads, width {shape.n_embed}"
    near, far = f"the nearest {sparse.window(length):,}", f"one in {sparse.global_every}"
    return (
        f"Two GPT-2s of {size} ({layout}) read {length:,} tokens at a time, for {summary.steps:,} steps. In "
        f"one, every head sees all earlier tokens; in the other, {sparse.local_heads} heads see {near} and "
        f"{sparse.global_heads} see {far}."
    )


def _facts(machine: Machine) -> tuple[tuple[str, str], ...]:
    gpu = machine.gpu or "no GPU"
    return (
        (
            "Machine",
            f"{machine.cpu}, {machine.threads} threads, {machine.memory_bytes / 2**30:.0f} GiB, {gpu}",
        ),
        ("System", machine.system),
        ("Versions", f"Gossamer {machine.gossamer}, PyTorch {machine.torch}, Python {machine.python}"),
        ("Date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    )
