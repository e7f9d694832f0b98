"""A contender's way through the lengths: what it needed at the last ones decides if it starts at the next."""

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..measure import peak_memory
from .case import Clock, Contender, Step
from .clock import wall_seconds
from .results import Absence, Measurement
from .setting import Setting

logger = logging.getLogger(__name__)


@dataclass
class Heat:
    """A contender that is warm and ready to be timed at one length."""

    step: Step
    peak_bytes: int
    repeats: int
    times: list[float] = field(default_factory=list)
    setup_seconds: float | None = None


class Entrant:
    """A contender in one case, judged once at the gate and then asked in at each length."""

    def __init__(self, contender: Contender, case: str, setting: Setting, clock: Clock):
        self.contender = contender
        self.case = case
        self.setting = setting
        self.clock = clock
        self.history: list[Measurement] = []
        logger.info("%s, %s at the gate", case, contender.name)
        self.fault = None if contender.missing else _outcome(contender)

    def enter(self, length: int) -> Heat | Absence:
        """The contender warmed up and its memory measured, or the reason why it stays out."""
        reason = self.contender.missing or self._over_memory(length) or self._over_time(length)
        if self.fault is None and reason is None:
            try:
                return self._warm(length)
            except Exception as error:  # one contender's failure is a result, not the end of the benchmark
                self.fault = f"at length {length}: {_first_line(error)}"
        if self.fault is not None:
            return Absence(self.case, self.contender.name, length, "failed", self.fault)
        return Absence(self.case, self.contender.name, length, "skipped", reason or "")

    def finish(self, length: int, heat: Heat) -> Measurement:
        """The result of a heat, kept in mind for the next length."""
        measurement = Measurement(
            self.case,
            self.contender.name,
            length,
            seconds=statistics.median(heat.times),
            fastest=min(heat.times),
            slowest=max(heat.times),
            repeats=len(heat.times),
            peak_bytes=heat.peak_bytes,
            setup_seconds=heat.setup_seconds,
            work=self.contender.work(length) if self.contender.work else None,
            backends=self.contender.backends(length) if self.contender.backends else None,
        )
        self.history.append(measurement)
        return measurement

    def _warm(self, length: int) -> Heat:
        config = self.setting.config
        logger.info("%s, %s tokens, %s warms up", self.case, f"{length:,}", self.contender.name)
        step = self.contender.prepare(length)
        for _ in range(config.warmup):
            step()
        wrong = self.contender.fault_at(length, step)
        if wrong is not None:
            raise ArithmeticError(wrong)
        with peak_memory(self.setting.device) as peak:
            seconds = self.clock(step)
        affordable = int(config.seconds / max(seconds, 1e-9))
        repeats = max(1, min(config.repeats, affordable))
        return Heat(step, peak.bytes, repeats, setup_seconds=self._setup_seconds(length))

    def _setup_seconds(self, length: int) -> float | None:
        """Time to make again, warm, what `prepare` had to make for this length."""
        setup = self.contender.setup
        return None if setup is None else wall_seconds(lambda: setup(length), self.setting.device)

    def _over_memory(self, length: int) -> str | None:
        expected = self._expected(length, [m.peak_bytes for m in self.history])
        needed, allowed = max(expected, self.contender.needs(length)) / 2**30, self.setting.config.memory_gib
        if allowed is None or needed <= allowed:
            return None
        return f"needs about {needed:.1f} GiB, allowed are {allowed:.1f} (--memory-gib)"

    def _over_time(self, length: int) -> str | None:
        expected = self._expected(length, [m.seconds for m in self.history])
        allowed = self.setting.config.seconds
        if expected <= allowed:
            return None
        return f"one call would take about {expected:.0f} s, allowed are {allowed:.0f} (--seconds)"

    def _expected(self, length: int, past: Sequence[float]) -> float:
        """The last figure, scaled by the power of the length that the last two show, between 1 and 2."""
        lengths, power = [m.length for m in self.history], 1.0
        if not past:
            return 0.0
        if len(past) > 1 and min(past) > 0:
            power = math.log(past[-1] / past[-2]) / math.log(lengths[-1] / lengths[-2])
        return past[-1] * (length / lengths[-1]) ** min(2.0, max(1.0, power))


def _outcome(contender: Contender) -> str | None:
    try:
        return contender.fault()
    except Exception as error:  # a peer may raise anything
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
