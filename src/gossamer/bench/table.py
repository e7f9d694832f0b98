"""The results of a benchmark as tables for a terminal."""

from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from .config import BenchConfig
from .results import CLAIMED_MEMORY_SAVED, CLAIMED_SPEEDUP, NAIVE, Measurement, Results, claimed

NOTHING = "–"
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
HEADINGS = (
    "length",
    "contender",
    "median (min–max)",
    "× dense",
    "× naive",
    "document\nclaims ×",
    "peak\nmemory",
    "saved of\nnaive",
    "document\nclaims",
)


def tables(results: Results) -> list[Table]:
    """One table a case: time, memory, ratios; what the design document claims is in columns that say so."""
    return [_table(results, case) for case in results.cases]


def _table(results: Results, case: str) -> Table:
    title, notes = f"{case} ({_setup(results.config)})", "\n".join(_notes(results, case))
    table = Table(title=title, caption=Text(notes), box=box.SIMPLE_HEAD)  # as text: brackets are no markup
    table.title_justify = table.caption_justify = "left"
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "contender" else "right", no_wrap=True)
    for _, rows in groupby(results.measurements(case), key=lambda m: m.length):
        for m in rows:
            table.add_row(*_cells(results, m))
        table.add_section()
    return table


def _cells(results: Results, m: Measurement) -> tuple[str, ...]:
    return (
        f"{m.length:,}",
        m.contender,
        _spread(m),
        _ratio(results.speedup(m)),
        _ratio(results.speedup(m, over=(NAIVE,))),
        _ratio(claimed(m, CLAIMED_SPEEDUP)),
        f"{m.peak_bytes / 2**20:,.1f} MiB",
        _share(results.memory_saved(m)),
        _share(claimed(m, CLAIMED_MEMORY_SAVED)),
    )


def _setup(config: BenchConfig) -> str:
    where = f"CPU threads: {config.threads}" if config.device == "cpu" else config.device
    return f"batch {config.batch}, {config.heads} heads × {config.head_width}, {config.precision}, {where}"


def _notes(results: Results, case: str) -> list[str]:
    """Where sparse overtakes dense, and why anyone is missing from the rows above."""
    notes = []
    for name in results.contenders(case):
        overtaking = results.overtaking(case, name)
        if overtaking is not None:
            notes.append(f"{name} is {overtaking}")
        lengths: dict[str, list[str]] = {}
        for absence in results.absences(case, name):
            lengths.setdefault(f"{absence.status}: {absence.reason}", []).append(f"{absence.length:,}")
        timed = results.measurements(case, name)
        for reason, where in lengths.items():
            notes.append(f"{name} {reason}" + (f" (at {', '.join(where)} tokens)" if timed else ""))
    return notes


def _spread(m: Measurement) -> str:
    """Median, and in brackets the fastest and the slowest, in the unit that suits the median."""
    unit, size = next(((unit, size) for unit, size in UNITS if m.seconds >= size), UNITS[-1])
    median, fastest, slowest = (f"{seconds / size:.3g}" for seconds in (m.seconds, m.fastest, m.slowest))
    return f"{median} {unit} ({fastest}–{slowest})"


def _ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f} %"
