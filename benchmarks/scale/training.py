"""Training runs of several processes: a million tokens of context, FSDP2 at fixed tokens a process, each switch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gossamer import GPT2Config
from gossamer.training import DataConfig, RunConfig, TrainConfig, train
from gossamer.training.config import ParallelConfig

from .figures import Figure

STEPS, SETTLED, PROFILED = 9, 3, 6
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     \n", np.uint8)
WINDOW, VOCABULARY = 1_024, 50_304


class _Enough(Exception):
    """As many steps as are measured are done; nothing is to be saved."""


def training_figures(device: torch.device, *, small: bool) -> Iterator[Figure]:
    """A GPT-2 whose context all processes share, and FSDP2."""
    count = dist.get_world_size()
    with _text(2**18 if small else 2**23) as text:
        context = (4_096 if small else 2**19) * count
        config = _config(text, small, context=context, shape=(12, 12, 768), batch=1)
        kept = replace(config.run, activation_checkpointing="selective")
        long = replace(config, run=kept, parallel=ParallelConfig(context=count))
        yield _figure("training", f"GPT-2, {context:,} tokens of context", long)
        wide = _config(text, small, context=256 if small else 8192, shape=(12, 16, 2048), batch=4 * count)
        yield _figure("training", "FSDP2, 0.7 billion weights", replace(wide, parallel=ParallelConfig(strategy="fsdp")))


def switch_figures(device: torch.device, *, small: bool, cases: Sequence[str] = ("",)) -> Iterator[Figure]:
    """What each switch costs and saves, one at a time; of those whose names hold one of `cases`."""
    count = dist.get_world_size()
    with _text(2**18 if small else 2**23) as text:
        base = _config(text, small, context=256 if small else 8192, shape=(24, 16, 1024), batch=4 * count)
        for case, run, parallel in SWITCHES:
            spread = ParallelConfig(**parallel | ({"context": count} if "context" in parallel else {}))
            if any(name in case for name in cases) and ("context" not in parallel or count > 1):
                yield _figure("switches", case, replace(base, run=replace(base.run, **run), parallel=spread))


OVER_ALL = {"context": 0}
"""Stands for a context that all processes share, however many."""

SWITCHES: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("DDP", {}, {}),
    ("DDP, run.activation_checkpointing full", {"activation_checkpointing": "full"}, {}),
    ("DDP, run.activation_checkpointing selective", {"activation_checkpointing": "selective"}, {}),
    ("DDP, run.gradient_accumulation 4", {"gradient_accumulation": 4}, {}),
    ("FSDP2", {}, {"strategy": "fsdp"}),
    ("FSDP2, parallel.reshard_after_forward off", {}, {"strategy": "fsdp", "reshard_after_forward": False}),
    ("FSDP2, parallel.offload", {}, {"strategy": "fsdp", "offload": True}),
    ("DDP, parallel.context over all", {}, OVER_ALL),
    ("DDP, parallel.context over all, exchange heads", {}, OVER_ALL | {"exchange": "heads"}),
    ("FSDP2, parallel.context over all", {}, OVER_ALL | {"strategy": "fsdp"}),
    ("DDP, run.compile", {"compile": True}, {}),
    ("DDP, both run.compile and selective", {"compile": True, "activation_checkpointing": "selective"}, {}),
)


def _config(text: Path, small: bool, *, context: int, shape: tuple[int, int, int], batch: int) -> TrainConfig:
    layers, heads, width = (2, 4, 64) if small else shape
    model = GPT2Config(
        vocab_size=300 if small else VOCABULARY, context_size=context, n_layer=layers, n_head=heads, n_embed=width,
        positions="rotary", windows=(64 if small else WINDOW,) * layers,
    )  # fmt: skip
    data = DataConfig((str(text),), tokenizer="bytes", validation_share=0.3, folder=str(text.with_suffix("")))
    precision = "fp32" if small else "bf16"
    never = 10 * STEPS
    run = RunConfig(
        steps=never, batch_size=batch, precision=precision, evaluate_every=never, checkpoint_every=never,
        profile_steps=(PROFILED,), report_every=never,
    )  # fmt: skip
    return TrainConfig(model=model, data=data, run=run)


def _figure(section: str, case: str, config: TrainConfig) -> Figure:
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == STEPS:
            raise _Enough

    with _shared_folder() as folder, suppress(_Enough):
        train(replace(config, run=replace(config.run, folder=str(folder / "run"))), on_step=note)
    settled = [row for row in rows[SETTLED:] if row["step"] != PROFILED]
    profiled = rows[PROFILED - 1]
    return Figure(
        section, case, dist.get_world_size(), config.run.batch_size * config.model.context_size,
        seconds=median(row["seconds"] for row in settled),
        exchanging=profiled.get("communication_seconds"),
        exposed=profiled.get("exposed_seconds"),
        nbytes=settled[-1]["communication_bytes"],
        peak=settled[-1]["peak_memory_bytes"],
        share_of_peak=settled[-1].get("mfu"),
    )  # fmt: skip


@contextmanager
def _text(letters: int) -> Iterator[Path]:
    """A file of so many letters; its tokens are made beside it, once."""
    with _shared_folder() as folder:
        path = folder / "text.txt"
        if dist.get_rank() == 0:
            path.write_bytes(np.random.default_rng(0).choice(LETTERS, letters).tobytes())
        dist.barrier()
        yield path


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """A folder of the first process that all see, for the length of the block."""
    with tempfile.TemporaryDirectory() as folder:
        where = [folder]
        dist.broadcast_object_list(where, src=0)
        yield Path(where[0])
        dist.barrier()
