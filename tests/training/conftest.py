"""A text of a few kilobytes and the smallest run that trains on it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.config import GPT2Config, SparseAttentionConfig
from gossamer.training.config import DataConfig, RunConfig, ScheduleConfig, TrainConfig

CONTEXT = 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """SIGINT and SIGTERM as in a terminal, even where the tests run in a job that ignores them."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """`with file_size_limit(n):` no file grows beyond n bytes, as if the disk were full."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(120)))
    return path


@pytest.fixture
def tiny(tmp_path: Path, text: Path) -> Callable[..., TrainConfig]:
    """`tiny(steps=3)` is a run of three steps; dropout is on, so that random states matter."""

    def config(*, sparse: bool = True, model: dict[str, Any] | None = None, **run: Any) -> TrainConfig:
        heads = SparseAttentionConfig(local_heads=2, global_heads=1, window_size=4, min_window_size=1)
        shape = GPT2Config(
            vocab_size=257,
            context_size=CONTEXT,
            n_layer=1,
            n_head=3,
            n_embed=24,
            dropout=0.1,
            use_sparse_attention=sparse,
            sparse_config=heads if sparse else None,
        )
        settings = {"folder": str(tmp_path / "run"), "steps": 6, "batch_size": 4, "evaluate_sequences": 4}
        return TrainConfig(
            model=replace(shape, **(model or {})),
            data=DataConfig(sources=(str(text),), tokenizer="bytes", validation_share=0.1),
            schedule=ScheduleConfig(warmup_steps=2),
            run=RunConfig(**{**settings, "device": "cpu", **run}),
        )

    return config
