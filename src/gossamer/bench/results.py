"""What was measured, and what follows: ratios, memory saved, the length at which sparse overtakes dense."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..machine import Machine
from .backends import Backends
from .config import TITLES, BenchConfig, ModelBench
from .floor import Ceilings, Work

DENSE = ("sdpa", "cudnn", "flash", "gpt2 dense")
NAIVE = "naive"
DOCUMENT = "document"

RIVALS = {
    "window": ("local-attention", "flex", "fa4", *DENSE),
    "document": ("flex-document", *DENSE),
    "window+tokens": ("flex-window+tokens", *DENSE),
    "window+strided": DENSE,
}
"""Who else computes what each of ours computes; dense attention computes it, and more."""

CLAIMED_SPEEDUP = {512: 4.0, 1024: 7.7, 2048: 16.2, 4096: 32.3}
"""The design document's table: operations of dense over sparse at window 128. Claimed, not measured."""

CLAIMED_MEMORY_SAVED = {512: 0.75, 1024: 0.875, 2048: 0.9375, 4096: 0.96875}
"""The design document's table: share of n×n memory that a window of 128 saves. Claimed, not measured."""


@dataclass(frozen=True)
class Measurement:
    """One contender at one length: median seconds a call, the extremes, and peak bytes above the inputs."""

    case: str
    contender: str
    length: int
    seconds: float
    fastest: float
    slowest: float
    repeats: int
    peak_bytes: int
    setup_seconds: float | None = None
    """Wall time to make what it needs once for a length, such as a block mask; not part of `seconds`."""
    work: Work | None = None
    """The least that the job takes; None where that is not known."""
    backends: Backends | None = None
    """What ran it of this library; None for the others."""

    def __str__(self) -> str:
        return f"{self.case}, {self.length:,} tokens, {self.contender}: {1e3 * self.seconds:,.2f} ms"


@dataclass(frozen=True)
class Absence:
    """A contender that was not timed at a length: skipped, or failed at the gate or on the way, and why."""

    case: str
    contender: str
    length: int
    status: Literal["skipped", "failed"]
    reason: str

    def __str__(self) -> str:
        return f"{self.case}, {self.length:,} tokens, {self.contender} {self.status}: {self.reason}"


Outcome = Measurement | Absence


@dataclass(frozen=True)
class Results:
    """Every outcome of one run, with the machine, versions, date and configuration that it had."""

    config: BenchConfig
    machine: Machine
    date: str
    outcomes: tuple[Outcome, ...]
    ceilings: Ceilings | None = None
    """What the machine reached at most in the same run."""

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases in the order in which they ran."""
        return tuple(dict.fromkeys(o.case for o in self.outcomes))

    def contenders(self, case: str) -> tuple[str, ...]:
        """Who was to take part in a case, in order, whether or not they were timed."""
        return tuple(dict.fromkeys(o.contender for o in self.outcomes if o.case == case))

    def measurements(self, case: str, contender: str | None = None) -> list[Measurement]:
        """What was measured in a case, by everyone or by one contender, lengths rising."""
        return [o for o in self._outcomes(case, contender) if isinstance(o, Measurement)]

    def absences(self, case: str, contender: str | None = None) -> list[Absence]:
        """What was not measured in a case, lengths rising."""
        return [o for o in self._outcomes(case, contender) if isinstance(o, Absence)]

    def measurement(self, case: str, contender: str, length: int) -> Measurement | None:
        """One contender at one length; None if it was not measured there."""
        return next((m for m in self.measurements(case, contender) if m.length == length), None)

    def speedup(self, m: Measurement, over: tuple[str, ...] = DENSE) -> float | None:
        """How many times as fast as the fastest of `over` at its length `m` is; None if all are missing."""
        rivals = self._rivals(m, over)
        return min(r.seconds for r in rivals) / m.seconds if rivals else None

    def best_rival(self, m: Measurement) -> Measurement | None:
        """The fastest that others do of what `m` does, at its length; None if it has no rival there."""
        return min(self._rivals(m, RIVALS.get(m.contender, ())), key=lambda r: r.seconds, default=None)

    def share_of_floor(self, m: Measurement) -> float | None:
        """The physical floor's time over `m`'s: 1 means that no machine work was wasted; None if unknown."""
        return m.work.floor(self.ceilings) / m.seconds if m.work and self.ceilings else None

    def memory_saved(self, m: Measurement, over: tuple[str, ...] = (NAIVE,)) -> float | None:
        """Share of the leanest of `over`'s memory that `m` does without; negative where it needs more."""
        leanest = min((r.peak_bytes for r in self._rivals(m, over)), default=0)
        return 1 - m.peak_bytes / leanest if leanest else None

    def crossover(self, case: str, contender: str) -> float | None:
        """The length from which `contender` is faster than dense at every longer one; None if there is none.

        Between two measured lengths the times are taken to follow power laws. A contender that is faster
        everywhere crosses at or below the shortest length, which is then the answer.
        """
        points = self._speedups(case, contender)
        slower = [i for i, (_, speedup) in enumerate(points) if speedup <= 1]
        if contender in DENSE or not points or (slower and slower[-1] == len(points) - 1):
            return None
        if not slower:
            return float(points[0][0])
        (n0, s0), (n1, s1) = points[slower[-1]], points[slower[-1] + 1]
        return n0 * (n1 / n0) ** (-math.log(s0) / (math.log(s1) - math.log(s0)))

    def overtaking(self, case: str, contender: str) -> str | None:
        """The crossover in words; None if there is none."""
        crossover = self.crossover(case, contender)
        if crossover is None:
            return None
        if crossover == self._speedups(case, contender)[0][0]:
            return "faster than dense at every length measured"
        return f"faster than dense from {crossover:,.0f} tokens on"

    def record(self) -> dict[str, Any]:
        """Everything as plain values for JSON, ratios and the document's claims included."""
        return {
            "date": self.date,
            "machine": asdict(self.machine),
            "config": asdict(self.config) | {"folder": str(self.config.folder)},
            "ceilings": asdict(self.ceilings) if self.ceilings else None,
            "crossover": {case: self._crossovers(case) for case in self.cases},
            "measurements": [self._row(m) for case in self.cases for m in self.measurements(case)],
            "absences": [asdict(a) for case in self.cases for a in self.absences(case)],
        }

    def save(self, path: Path) -> None:
        """Write the record as a JSON file; its folder is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Results":
        """The results that `record` was made of."""
        config, ceilings = _with_tuples(record["config"]), record["ceilings"]
        trees: dict[str, Any] = {"folder": Path(config["folder"]), "model": ModelBench(**_with_tuples(config["model"]))}
        return cls(
            BenchConfig(**config | trees),
            Machine(**record["machine"]),
            record["date"],
            (*map(_measurement, record["measurements"]), *(Absence(**row) for row in record["absences"])),
            Ceilings(**ceilings) if ceilings else None,
        )

    def _outcomes(self, case: str, contender: str | None) -> list[Outcome]:
        chosen = [o for o in self.outcomes if o.case == case and contender in (None, o.contender)]
        return sorted(chosen, key=lambda o: o.length)

    def _rivals(self, m: Measurement, names: tuple[str, ...]) -> list[Measurement]:
        return [r for r in self.measurements(m.case) if r.length == m.length and r.contender in names]

    def _speedups(self, case: str, contender: str) -> list[tuple[int, float]]:
        rows = ((m.length, self.speedup(m)) for m in self.measurements(case, contender))
        return [(length, speedup) for length, speedup in rows if speedup is not None]

    def _crossovers(self, case: str) -> dict[str, float | None]:
        return {name: self.crossover(case, name) for name in self.contenders(case)}

    def _row(self, m: Measurement) -> dict[str, Any]:
        rival = self.best_rival(m)
        return asdict(m) | {
            "share_of_floor": self.share_of_floor(m),
            "best_rival": rival.contender if rival else None,
            "speedup_over_best_rival": rival.seconds / m.seconds if rival else None,
            "speedup_over_dense": self.speedup(m),
            "speedup_over_naive": self.speedup(m, over=(NAIVE,)),
            "memory_saved_over_dense": self.memory_saved(m, over=DENSE),
            "memory_saved_over_naive": self.memory_saved(m),
            "document_claims_speedup": claimed(m, CLAIMED_SPEEDUP),
            "document_claims_memory_saved": claimed(m, CLAIMED_MEMORY_SAVED),
        }


def claimed(m: Measurement, table: dict[int, float]) -> float | None:
    """What the design document claims for this row: it speaks of its own attention of whole texts, at four lengths."""
    return table.get(m.length) if m.contender == DOCUMENT and m.case != TITLES["decode"] else None


def _measurement(row: dict[str, Any]) -> Measurement:
    fields = {name: row[name] for name in Measurement.__dataclass_fields__ if name in row}  # older records lack some
    trees: dict[str, Any] = {
        name: tree(**row[name]) for name, tree in (("work", Work), ("backends", Backends)) if row.get(name)
    }
    return Measurement(**fields | trees)


def _with_tuples(tree: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}
