"""Everything that decides a training run, as one tree of frozen values that imports no torch.

The same tree is the Python API, a TOML file (one table per branch) and the command line (one flag per leaf).
"""

from __future__ import annotations

import codecs
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import tomli_w

from ..config import GPT2Config, tree
from ..patterns.base import require_integer

Precision = Literal["fp32", "bf16", "fp16"]
Stage = Literal["dense", "warm_up", "sparse"]
Packing = Literal["none", "documents"]


@dataclass(frozen=True)
class DataConfig:
    """The text, and how it becomes tokens."""

    sources: tuple[str, ...] = ()
    """Text files, folders of them, or - for standard input. Empty: `dataset`, else what `folder` holds already, else
    the source of Python's standard library."""
    dataset: str | None = None
    """Instead of sources: a data set of Hugging Face's Hub, a folder of one, or a format (json, parquet, text, csv),
    which the library `datasets` streams (pip install 'gossamer[datasets]')."""
    dataset_files: tuple[str, ...] = ()
    """Files of the format, or of the data set: names, patterns or addresses. Empty: those that it has."""
    dataset_subset: str | None = None
    """Which of the data set's configurations. None: the only one."""
    dataset_split: str = "train"
    """Which of its splits becomes tokens; both training and validation are cut from it."""
    dataset_column: str = "text"
    """The column that holds the text; each row is a document."""
    folder: str | None = None
    """Where the tokens are kept, for several runs to share; made if missing. None: in the run's folder."""
    tokenizer: str | None = None
    """bpe (trained on the text to `model.vocab_size` entries), bytes, or a folder with encoder.json and
    vocab.bpe or with tokenizer.json. None: what `folder` holds already, else bpe."""
    encoding: str = "utf-8"
    """Character encoding of the text."""
    validation_share: float = 0.05
    """Share of the tokens, at the end of the text, that is kept out of training to evaluate on."""
    packing: Packing = "none"
    """none: a sequence is a stretch of the text, and a token sees those of earlier documents in it. documents: each
    document in it is by itself; positions and the pattern begin anew, and none is trained to foresee the next."""

    def __post_init__(self) -> None:
        for name in ("sources", "dataset_files"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise ValueError(f"DataConfig: {name} is {given!r}; give a list, such as [{given!r}]")
            object.__setattr__(self, name, tuple(str(source) for source in given))
        if self.sources and self.dataset:
            raise ValueError(
                f"DataConfig: sources is {self.sources} and dataset is {self.dataset!r}; give one of the two"
            )
        if self.dataset_files and not self.dataset:
            raise ValueError("DataConfig: dataset_files is given without dataset; give their format, such as json")
        if self.packing not in get_args(Packing):
            raise ValueError(f"DataConfig: packing is {self.packing!r}; give one of {', '.join(get_args(Packing))}")
        _require(self, "validation_share", lambda share: 0 < share < 1, "a share between 0 and 1")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(
                f"DataConfig: encoding is {self.encoding!r}; give one Python knows, such as utf-8"
            ) from None


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019); weight decay acts on matrices and not on biases or norms."""

    learning_rate: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    weight_decay: float = 0.1
    """Share of a weight, times the learning rate, that is taken off in each step."""
    beta1: float = 0.9
    """Decay of the running mean of the gradients."""
    beta2: float = 0.95
    """Decay of the running mean of their squares."""
    epsilon: float = 1e-8
    """Added to the root of the mean square."""
    gradient_clip: float = 1.0
    """Longest gradient; a longer one is shortened to it. inf never shortens."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon"):
            _require(self, name, lambda size: 0 < size < math.inf, "a positive number")
        for name in ("beta1", "beta2"):
            _require(self, name, lambda decay: 0 <= decay < 1, "a share in [0, 1)")
        _require(self, "weight_decay", lambda decay: 0 <= decay < math.inf, "0 or a positive number")
        _require(self, "gradient_clip", lambda length: length > 0, "a positive number, or inf for no clipping")


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter, 2017, without restarts)."""

    warmup_steps: int = 50
    """Steps in which the learning rate grows from zero to its highest value."""
    final_share: float = 0.1
    """The last step's learning rate, as a share of the highest."""

    def __post_init__(self) -> None:
        _require_whole(self, "warmup_steps", least=0)
        _require(self, "final_share", lambda share: 0 <= share <= 1, "a share in [0, 1]")


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
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    compile: bool = False
    """Run the model through torch.compile: a slow first step, faster ones after it."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation", "evaluate_every", "evaluate_sequences"):
            _require_whole(self, name, least=1)
        for name in ("checkpoint_every", "keep_checkpoints", "report_every"):
            _require_whole(self, name, least=1)
        _require(self, "seed", lambda seed: 0 <= seed < 2**63 and seed == int(seed), "an integer in [0, 2^63)")
        if not self.folder:
            raise ValueError("RunConfig: folder is empty; give the folder that the run may write to")
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise ValueError(f"RunConfig: precision is {self.precision!r}; give one of {known}")
        if self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"RunConfig: gradient_accumulation is {self.gradient_accumulation}, which leaves pieces of "
                f"batch_size={self.batch_size} sequences empty; give at most {self.batch_size}"
            )


@dataclass(frozen=True)
class PhaseConfig:
    """A stretch of a run with its own windows, stage, context, learning rate and batch (staged training).

    What a phase leaves open is as in the rest of the tree. Its learning rate grows in a linear warm-up and then
    stays, or falls along half a cosine to `final_share` of itself. The optimizer's state goes on from the phase before.
    """

    steps: int = 1000
    """Optimizer steps of this phase."""
    windows: tuple[int, ...] = ()
    """Window of each layer, from the bottom to the top. Empty: `model.windows`."""
    stage: Stage | None = None
    """Of a model with `model.indexer`: dense (attention to all keys, the indexers rest), warm_up (attention to all
    keys, the indexers alone learn) or sparse (attention to the chosen keys, all learn). None: sparse."""
    context_size: int | None = None
    """Tokens in a sequence. None: `model.context_size`, which none may exceed."""
    learning_rate: float | None = None
    """Highest learning rate of this phase. None: `optimizer.learning_rate`."""
    batch_size: int | None = None
    """Sequences in one optimizer step. None: `run.batch_size`."""
    gradient_accumulation: int | None = None
    """Pieces in which they pass through the model. None: `run.gradient_accumulation`."""
    warmup_steps: int = 0
    """Steps in which the learning rate grows from zero, counted from the start of this phase."""
    final_share: float = 1.0
    """Learning rate of the phase's last step, as a share of its highest; 1 keeps it constant."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        for name, least in (("steps", 1), ("warmup_steps", 0)):
            _require_whole(self, name, least=least)
        for name in ("context_size", "batch_size", "gradient_accumulation"):
            if getattr(self, name) is not None:
                _require_whole(self, name, least=1)
        if self.stage not in (None, *get_args(Stage)):
            raise ValueError(f"PhaseConfig: stage is {self.stage!r}; give one of {', '.join(get_args(Stage))}")
        if self.learning_rate is not None:
            _require(self, "learning_rate", lambda rate: 0 < rate < math.inf, "a positive number")
        _require(self, "final_share", lambda share: 0 <= share <= 1, "a share in [0, 1]")


class Phase(NamedTuple):
    """A phase with nothing left open: the fields of `PhaseConfig`."""

    steps: int
    windows: tuple[int, ...]
    stage: Stage | None
    context_size: int
    learning_rate: float
    batch_size: int
    gradient_accumulation: int
    warmup_steps: int
    final_share: float


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
    phase: tuple[PhaseConfig, ...] = ()
    """Phases that the run goes through one after another, `[[phase]]` in TOML; `run.steps` is then their sum.
    Empty: the run is one phase, on `schedule`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phase", tuple(self.phase))
        if self.phase:
            self._require_steps_of_the_phases()
        for number, phase in enumerate(self.phases, 1):
            self._require_phase_that_fits(number, phase)

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


def _require(owner: Any, name: str, holds: Callable[[float], bool], wanted: str) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
        raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; give {wanted}")


def _require_whole(owner: Any, name: str, *, least: int) -> None:
    number = require_integer(type(owner).__name__, name, getattr(owner, name), least)
    object.__setattr__(owner, name, number)
