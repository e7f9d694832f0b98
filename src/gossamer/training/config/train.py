"""A training run as one tree: its branches and how they must fit each other."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import tomli_w

from ...config import GPT2Config, tree
from .data import DataConfig
from .guard import GuardConfig
from .optimizer import OptimizerConfig, ScheduleConfig
from .parallel import ParallelConfig
from .phase import Phase, PhaseConfig
from .run import RunConfig


def small_gpt2() -> GPT2Config:
    """A GPT-2 that a laptop can train, its attention sparse by the design document's pattern."""
    return GPT2Config(vocab_size=4096, context_size=512, n_layer=6, n_head=12, n_embed=384, use_sparse_attention=True)


@dataclass(frozen=True)
class TrainConfig:
    """A training run, whole.

    >>> TrainConfig.from_dict({"run": {"steps": 20}}).run.steps
    20
    >>> TrainConfig.from_dict({"run": {"step": 20}})
    Traceback (most recent call last):
    ValueError: unknown key run.step; did you mean run.steps?
    """

    model: GPT2Config = field(default_factory=small_gpt2)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    phase: tuple[PhaseConfig, ...] = ()
    """Phases that the run goes through one after another, `[[phase]]` in TOML; `run.steps` is then their sum.
    Empty: the run is one phase, on `schedule`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phase", tuple(self.phase))
        if self.phase:
            self._require_steps_of_the_phases()
        for number, phase in enumerate(self.phases, 1):
            self._require_phase_that_fits(number, phase)
        if self.data.packing != "none" and self.model.indexer is not None:
            raise ValueError(
                f"TrainConfig: data.packing is {self.data.packing!r}, but an indexer chooses among the keys of a whole "
                "sequence, other documents too; give data.packing='none'"
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run with what they leave open filled in; where none is given, the one that is all of it."""
        schedule = self.schedule
        whole = PhaseConfig(self.run.steps, warmup_steps=schedule.warmup_steps, final_share=schedule.final_share)
        return tuple(self._filled(phase) for phase in self.phase or (whole,))

    def to_dict(self) -> dict[str, Any]:
        """The tree as plain values that TOML and JSON can hold; fields that are None are left out."""
        return tree.plain(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The tree that `to_dict` wrote; what is absent keeps the value it has in `TrainConfig()`.

        Raises:
            ValueError: A key is unknown (the message names the nearest known one), or a value has the wrong
                type or is out of range.
        """
        return tree.build(cls, settings, cls())

    def to_toml(self, path: str | Path) -> None:
        """Write the tree to `path` for `from_toml`."""
        Path(path).write_text(tomli_w.dumps(self.to_dict()), encoding="utf-8")

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """The tree in the TOML file `path`; errors as in `from_dict`, with the file named.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not TOML, or `from_dict` refuses it.
        """
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:  # also broken TOML and broken UTF-8
            raise ValueError(f"{path}: {error}") from error

    def changes(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """Where the two trees differ: dotted name to (value here, value there)."""
        here, there = tree.leaves(self), tree.leaves(other)
        names = {**here, **there}
        return {name: (here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)}

    def _filled(self, phase: PhaseConfig) -> Phase:
        return Phase(
            steps=phase.steps,
            windows=phase.windows or self.model.windows,
            stage=phase.stage or ("sparse" if self.model.indexer else None),
            context_size=phase.context_size or self.model.context_size,
            learning_rate=phase.learning_rate or self.optimizer.learning_rate,
            batch_size=phase.batch_size or self.run.batch_size,
            gradient_accumulation=phase.gradient_accumulation or self.run.gradient_accumulation,
            warmup_steps=phase.warmup_steps,
            final_share=phase.final_share,
        )

    def _require_steps_of_the_phases(self) -> None:
        total = sum(phase.steps for phase in self.phase)
        if self.run.steps not in (RunConfig.steps, total):
            raise ValueError(
                f"TrainConfig: run.steps is {self.run.steps}, but the steps of the phases sum to {total}; "
                "leave run.steps out, or change a phase's"
            )
        object.__setattr__(self, "run", replace(self.run, steps=total))

    def _require_phase_that_fits(self, number: int, phase: Phase) -> None:
        model = self.model
        if phase.context_size > model.context_size:
            raise ValueError(
                f"TrainConfig: phase {number} has context_size={phase.context_size}, beyond "
                f"model.context_size={model.context_size}; make the model's the longest of all phases"
            )
        if len(phase.windows) != len(model.windows):
            raise ValueError(
                f"TrainConfig: phase {number} has windows={phase.windows}, and model.windows is {model.windows}; "
                "give both one window for each layer, or neither any"
            )
        if phase.stage and model.indexer is None:
            raise ValueError(
                f"TrainConfig: phase {number} has stage={phase.stage!r}, but the model has no indexers; set "
                f"model.indexer, or leave the stage out"
            )
        if phase.gradient_accumulation > phase.batch_size:
            raise ValueError(
                f"TrainConfig: phase {number} has gradient_accumulation={phase.gradient_accumulation}, which leaves "
                f"pieces of batch_size={phase.batch_size} sequences empty; give at most {phase.batch_size}"
            )
