"""Training runs of several processes: a GPT-2 at a million tokens of context, and FSDP2 at fixed tokens a process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist

from gossamer import GPT2Config
from gossamer.training import DataConfig, RunConfig, TrainConfig, train
from gossamer.training.config import ParallelConfig

from .figures import Figure

STEPS = 8
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     \n", np.uint8)


def training_figures(device: torch.device, *, small: bool) -> Iterator[Figure]:
    """One figure for each run."""
    with tempfile.TemporaryDirectory() as folder:
        where = [folder]
        dist.broadcast_object_list(where, src=0)
        text = Path(where[0], "text.txt")
        if dist.get_rank() == 0:
            _write(text, 2**18 if small else 2**23)
        dist.barrier()
        for case, config in _runs(text, small):
            yield _figure(case, config)
        dist.barrier()


def _runs(text: Path, small: bool) -> Iterator[tuple[str, TrainConfig]]:
    count = dist.get_world_size()
    context = (4_096 if small else 2**19) * count
    shape = {"n_layer": 2, "n_head": 2, "n_embed": 32} if small else {"n_layer": 12, "n_head": 12, "n_embed": 768}
    base = TrainConfig(
        data=DataConfig(
            sources=(str(text),), tokenizer="bytes", validation_share=0.3, folder=str(text.with_suffix(""))
        ),
        run=RunConfig(steps=STEPS, evaluate_every=STEPS, evaluate_sequences=1, checkpoint_every=STEPS),
    )
    long = _model(context, 64 if small else 1024, vocab_size=300 if small else 50304, **shape)
    recomputed = replace(
        base.run, batch_size=1, activation_checkpointing="selective", precision="fp32" if small else "bf16"
    )
    yield (
        f"GPT-2, {context:,} tokens of context",
        replace(base, model=long, run=recomputed, parallel=ParallelConfig(context=count)),
    )
    deep = {"n_layer": 2, "n_head": 2, "n_embed": 64} if small else {"n_layer": 12, "n_head": 16, "n_embed": 2048}
    wide = _model(256 if small else 8192, 64 if small else 1024, vocab_size=300 if small else 50304, **deep)
    batches = replace(base.run, batch_size=4 * count, precision="fp32" if small else "bf16")
    yield "FSDP2, 0.7 billion weights", replace(base, model=wide, run=batches, parallel=ParallelConfig(strategy="fsdp"))


def _model(context: int, window: int, *, vocab_size: int, n_layer: int, n_head: int, n_embed: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size, context_size=context, n_layer=n_layer, n_head=n_head, n_embed=n_embed,
        positions="rotary", windows=(window,) * n_layer,
    )  # fmt: skip


def _figure(case: str, config: TrainConfig) -> Figure:
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        where = [folder]
        dist.broadcast_object_list(where, src=0)
        run = replace(config.run, folder=str(Path(where[0], "run")))
        train(replace(config, run=run), on_step=rows.append)
    told = [rows]
    dist.broadcast_object_list(told, src=0)
    settled = told[0][3:]
    tokens = config.run.batch_size * config.model.context_size
    return Figure(
        "training", case, dist.get_world_size(), tokens,
        seconds=median(row["seconds"] for row in settled),
        nbytes=settled[-1].get("communication_bytes"),
        peak=settled[-1]["peak_memory_bytes"],
        share_of_peak=settled[-1].get("mfu"),
    )  # fmt: skip


def _write(path: Path, letters: int) -> None:
    path.write_bytes(np.random.default_rng(0).choice(LETTERS, letters).tobytes())
