"""How long, how often, on what and where to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ...patterns.base import require_integer
from .ranges import require, require_whole

Precision = Literal["fp32", "bf16", "fp16"]
ActivationCheckpointing = Literal["none", "full", "selective"]
Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class RunConfig:
    """How long, how often, on what and where to."""

    folder: str = "runs/gpt2"
    """Folder of the run: configuration, metrics, tokenizer and checkpoints. Must be new, or be resumed."""
    steps: int = 1000
    """Optimizer steps in all."""
    batch_size: int = 16
    """Sequences in one optimizer step."""
    gradient_accumulation: int = 1
    """Pieces in which a step's sequences pass through the model one by one: less memory, the same result."""
    evaluate_every: int = 100
    """Steps between two evaluations; the last step is always followed by one."""
    evaluate_sequences: int = 64
    """Sequences of the validation split in one evaluation: always the same first ones, or all there are."""
    checkpoint_every: int = 100
    """Steps between two checkpoints; the last step is always followed by one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    keep_every: int = 0
    """Checkpoints of every so many steps stay for ever as well; 0 is none."""
    background_saves: bool = True
    """Write checkpoints while training goes on, from a copy of the state in memory; else training waits."""
    report_every: int = 10
    """Steps between two lines of progress where the output is not a terminal."""
    seed: int = 0
    """Decides the initial weights, the order of the data and dropout."""
    precision: Precision = "fp32"
    """Arithmetic of the forward and backward pass; the weights stay fp32. fp16 scales the loss."""
    start_from: str | None = None
    """Folder of a trained model of the same shape whose weights the run begins with; indexers that it lacks begin
    anew. None: all weights begin at random."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """Compute activations again in the backward pass instead of keeping them: less memory, more time. full: all but
    what enters a layer. selective: all but that and what attention has found, which is dear to make and small."""
    compile: bool = False
    """Run the layers through torch.compile: a slow first step, faster ones after it. Equal layers are compiled once."""
    track: tuple[Tracker, ...] = ()
    """Where the metrics also go, besides metrics.jsonl: tensorboard, wandb, or both."""
    profile_steps: tuple[int, ...] = ()
    """Steps of which a timeline is written into the run's folder, for a browser to show."""
    peak_flops: float | None = None
    """Operations a second that one device does at most in this precision, of which `mfu` is a share. None: what the
    maker says of a device of this name, where that is known."""

    def __post_init__(self) -> None:
        for name in ("track", "profile_steps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._require_what_is_watched()
        for name in ("steps", "batch_size", "gradient_accumulation", "evaluate_every", "evaluate_sequences"):
            require_whole(self, name, least=1)
        for name in ("checkpoint_every", "keep_checkpoints", "report_every"):
            require_whole(self, name, least=1)
        require_whole(self, "keep_every", least=0)
        require(self, "seed", lambda seed: 0 <= seed < 2**63 and seed == int(seed), "an integer in [0, 2^63)")
        if not self.folder:
            raise ValueError("RunConfig: folder is empty; give the folder that the run may write to")
        for name, kinds in (("precision", Precision), ("activation_checkpointing", ActivationCheckpointing)):
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise ValueError(f"RunConfig: {name} is {getattr(self, name)!r}; give one of {known}")
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"RunConfig: gradient_accumulation is {self.gradient_accumulation}, which leaves pieces of "
                f"batch_size={self.batch_size} sequences empty; give at most {self.batch_size}"
            )

    def _require_what_is_watched(self) -> None:
        for name in self.track:
            if name not in get_args(Tracker):
                raise ValueError(f"RunConfig: track has {name!r}; give some of {', '.join(get_args(Tracker))}")
        for step in self.profile_steps:
            require_integer("RunConfig", "each of profile_steps", step, 1)
        if self.peak_flops is not None:
            require(self, "peak_flops", lambda peak: 0 < peak < math.inf, "a positive number")
