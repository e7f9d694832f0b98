"""The results of a case as rows of text, for whatever shows them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from .headings import setup
from .results import CLAIMED_MEMORY_SAVED, CLAIMED_SPEEDUP, NAIVE, Measurement, Results, claimed

NOTHING = "–"
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
HEADINGS = (
    "length",
    "contender",
    "median (min–max)",
    "useful\nTFLOP/s",
    "of the\nfloor",
    "× best\nrival",
    "× dense",
    "× naive",
    "document\nclaims ×",
    "peak\nmemory",
    "saved of\nnaive",
    "document\nclaims",
    "setup",
    "backend",
)


@dataclass(frozen=True)
class Sheet:
    """One case: what it was, its rows in groups of one length, and what must be said besides."""

    title: str
    headings: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...]


def sheets(results: Results) -> list[Sheet]:
    """A sheet for each case; a column in which nothing stands is left out."""
    return [_sheet(results, case) for case in results.cases]


def _sheet(results: Results, case: str) -> Sheet:
    groups = [
        [_cells(results, m) for m in rows] for _, rows in groupby(results.measurements(case), key=lambda m: m.length)
    ]
    used = [i for i, _ in enumerate(HEADINGS) if i < 3 or any(row[i] != NOTHING for rows in groups for row in rows)]
    return Sheet(
        f"{case} ({setup(results, case)})",
        tuple(HEADINGS[i] for i in used),
        tuple(tuple(tuple(row[i] for i in used) for row in rows) for rows in groups),
        tuple(_notes(results, case)),
    )


def _cells(results: Results, m: Measurement) -> tuple[str, ...]:
    rival, share = results.best_rival(m), results.share_of_floor(m)
    return (
        f"{m.length:,}",
        m.contender,
        _spread(m),
        NOTHING if m.work is None else f"{1e-12 * m.work.operations / m.seconds:.3g}",
        _share(share),
        NOTHING if rival is None else f"{ratio(rival.seconds / m.seconds)} ({rival.contender})",
        ratio(results.speedup(m)),
        ratio(results.speedup(m, over=(NAIVE,))),
        ratio(claimed(m, CLAIMED_SPEEDUP)),
        f"{m.peak_bytes / 2**20:,.1f} MiB",
        _share(results.memory_saved(m)),
        _share(claimed(m, CLAIMED_MEMORY_SAVED)),
        NOTHING if m.setup_seconds is None else duration(m.setup_seconds),
        NOTHING if m.backends is None else str(m.backends),
    )


def _notes(results: Results, case: str) -> Iterator[str]:
    """Where sparse overtakes dense, and why anyone is missing from the rows above."""
    for name in results.contenders(case):
        overtaking = results.overtaking(case, name)
        if overtaking is not None:
            yield f"{name} is {overtaking}"
        lengths: dict[str, list[str]] = {}
        for absence in results.absences(case, name):
            lengths.setdefault(f"{absence.status}: {absence.reason}", []).append(f"{absence.length:,}")
        timed = results.measurements(case, name)
        for reason, where in lengths.items():
            yield f"{name} {reason}" + (f" (at {', '.join(where)} tokens)" if timed else "")


def _spread(m: Measurement) -> str:
    """Median, and in brackets the fastest and the slowest, in the unit that suits the median."""
    unit, size = _unit(m.seconds)
    median, fastest, slowest = (f"{seconds / size:.3g}" for seconds in (m.seconds, m.fastest, m.slowest))
    return f"{median} {unit} ({fastest}–{slowest})"


def duration(seconds: float) -> str:
    """Three digits in the unit that suits them."""
    unit, size = _unit(seconds)
    return f"{seconds / size:.3g} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    return next(((unit, size) for unit, size in UNITS if seconds >= size), UNITS[-1])


def ratio(value: float | None) -> str:
    """How many times as fast, or a dash."""
    return NOTHING if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f} %"
