"""Everything that decides a training run, as one tree of frozen values that imports no torch.

The same tree is the Python API, a TOML file (one table per branch) and the command line (one flag per leaf).
"""

from .data import DataConfig, Packing
from .guard import GuardConfig
from .optimizer import OptimizerConfig, ScheduleConfig
from .parallel import Exchange, ParallelConfig, Strategy
from .phase import Phase, PhaseConfig, Stage
from .run import ActivationCheckpointing, Precision, RunConfig, Tracker
from .train import TrainConfig, small_gpt2

__all__ = [
    "ActivationCheckpointing",
    "DataConfig",
    "Exchange",
    "GuardConfig",
    "OptimizerConfig",
    "Packing",
    "ParallelConfig",
    "Phase",
    "PhaseConfig",
    "Precision",
    "RunConfig",
    "ScheduleConfig",
    "Stage",
    "Strategy",
    "Tracker",
    "TrainConfig",
    "small_gpt2",
]
