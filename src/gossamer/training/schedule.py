"""How the learning rate rises and falls."""

import math

from .config import Phase


def learning_rate(step: int, phase: Phase) -> float:
    """The learning rate of update `step` of a phase, counted from 1: linear warm-up, then half a cosine.

    It is highest at update `warmup_steps` and has fallen to `final_share` of that at the phase's last update.
    """
    if step <= phase.warmup_steps:
        return phase.learning_rate * step / phase.warmup_steps
    fallen = (step - phase.warmup_steps) / (phase.steps - phase.warmup_steps)
    share = (1 + math.cos(math.pi * fallen)) / 2
    return phase.learning_rate * (phase.final_share + (1 - phase.final_share) * share)
