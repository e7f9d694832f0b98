"""How the paper trains Longformer's language models: five phases, each of twice the window and the length."""

from __future__ import annotations

from typing import Literal

from ..config import longformer_lm
from ..config.longformer_lm import PHASES
from .config import DataConfig, OptimizerConfig, PhaseConfig, RunConfig, TrainConfig

LENGTHS = (2_048, 4_096, 8_192, 16_384, 23_040)
BATCHES = (32, 32, 16, 16, 16)
STEPS = {
    "small": (430_000, 50_000, 50_000, 35_000, 5_000),
    "large": (350_000, 25_000, 10_000, 5_000, 5_000),
}
MOST_WARMUP = 10_000


def longformer_lm_training(size: Literal["small", "large"]) -> TrainConfig:
    """The run of table 12 (arXiv 2004.05150) as a tree: windows and length double, the learning rate halves.

    A phase warms up over a tenth of its steps, 10,000 at most, and then keeps its rate. The table is mis-set; its
    windows are read here as 32 to 512 in the first phase and 512 to 8,192 in the last. The text is for the caller to
    name, in `data.sources`; its tokens are its bytes.

    >>> run = longformer_lm_training("small")
    >>> [(phase.context_size, phase.learning_rate) for phase in run.phase][-2:]
    [(16384, 3.125e-05), (23040, 1.5625e-05)]

    Raises:
        ValueError: `size` is neither small nor large.
    """
    model = longformer_lm(size, phase=1)
    phases = tuple(
        PhaseConfig(
            steps=steps,
            windows=longformer_lm(size, phase=phase).windows,
            context_size=length,
            learning_rate=2.5e-4 / 2 ** (phase - 1),
            batch_size=batch,
            warmup_steps=min(steps // 10, MOST_WARMUP),
        )
        for phase, steps, length, batch in zip(range(1, PHASES + 1), STEPS[size], LENGTHS, BATCHES, strict=True)
    )
    return TrainConfig(
        model=model,
        data=DataConfig(tokenizer="bytes"),
        optimizer=OptimizerConfig(learning_rate=2.5e-4, weight_decay=0.01, gradient_clip=0.25),
        run=RunConfig(
            folder=f"runs/longformer-lm-{size}", precision="bf16", evaluate_every=1_000, checkpoint_every=1_000
        ),
        phase=phases,
    )
