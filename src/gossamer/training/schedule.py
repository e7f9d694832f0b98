"""How the learning rate rises and falls."""

import math

from .config import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The learning rate of update `step` of `steps`, counted from 1: linear warm-up, then half a cosine.

    It is highest at update `warmup_steps` and has fallen to `final_share` of that at the last update.
    """
    if step <= schedule.warmup_steps:
        return optimizer.learning_rate * step / schedule.warmup_steps
    fallen = (step - schedule.warmup_steps) / (steps - schedule.warmup_steps)
    share = (1 + math.cos(math.pi * fallen)) / 2
    return optimizer.learning_rate * (schedule.final_share + (1 - schedule.final_share) * share)
