"""The one driver of every benchmark: gate, warm up, measure memory, then time the contenders in turns."""

import logging
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial

import torch

from ..machine import this_machine
from .attention_cases import attention_fault, forward_case, launch_case, training_case
from .case import Case, Clock
from .ceilings import measure_ceilings
from .clock import clock_for
from .config import BenchConfig
from .contenders import attentions
from .decode_case import decode_case
from .entrant import Entrant, Heat
from .model_case import model_case
from .results import Outcome, Results
from .setting import Setting, decide

logger = logging.getLogger(__name__)

OnOutcome = Callable[[Outcome], None]


def run(config: BenchConfig, *, on_outcome: OnOutcome = lambda outcome: None) -> Results:
    """Measure what `config` names; `on_outcome` hears of each result as it comes.

    A contender that fails its correctness gate is reported as failed and never timed; one that is missing, or
    that would take more memory or time than allowed, is reported as skipped. Both come with the reason.
    """
    setting = decide(config)
    with _threads(setting.config.threads):
        machine = this_machine()
        ceilings = measure_ceilings(setting.device, setting.dtype, torch.get_num_threads())
        outcomes = tuple(o for case in cases(setting) for o in measure(case, setting, on_outcome))
    return Results(setting.config, machine, datetime.now(UTC).isoformat(timespec="seconds"), outcomes, ceilings)


def cases(setting: Setting) -> Iterator[Case]:
    """The cases that the configuration names, made one after the other so that each frees its tensors."""
    rivals, judge = attentions(setting), cache(partial(attention_fault, setting))
    makers = {
        "forward": partial(forward_case, setting, rivals, judge),
        "training": partial(training_case, setting, rivals, judge),
        "launch": partial(launch_case, setting, rivals, judge),
        "decode": partial(decode_case, setting, rivals),
        "model": partial(model_case, setting),
    }
    return (make() for name, make in makers.items() if name in setting.config.cases)


def measure(case: Case, setting: Setting, on_outcome: OnOutcome) -> Iterator[Outcome]:
    """Every contender of a case at every length that it can reach."""
    clock = (case.clock or clock_for)(setting.device)
    entrants = [Entrant(contender, case.name, setting, clock) for contender in case.contenders]
    for length in sorted(set(case.lengths)):
        for outcome in _race(entrants, length, clock):
            logger.info("%s", outcome)
            on_outcome(outcome)
            yield outcome


def _race(entrants: list[Entrant], length: int, clock: Clock) -> list[Outcome]:
    """One length: the contenders take turns, so that a machine that slows down slows all of them.

    Each turn has an order of its own, the same in every run: a GPU clocks lower after a hungry contender, and nobody
    shall always come after it.
    """
    entries = [(entrant, entrant.enter(length)) for entrant in entrants]
    heats = [entry for _, entry in entries if isinstance(entry, Heat)]
    for turn in range(max((heat.repeats for heat in heats), default=0)):
        for heat in random.Random(turn).sample(heats, len(heats)):
            if turn < heat.repeats:
                heat.times.append(clock(heat.step))
    return [e.finish(length, entry) if isinstance(entry, Heat) else entry for e, entry in entries]


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
