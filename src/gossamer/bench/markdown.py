"""The results of benchmarks as Markdown, ready to be shown or included."""

from collections.abc import Iterable, Iterator, Sequence

from .headings import pattern_words, shape_words, size_words
from .results import RIVALS, Measurement, Results
from .sheet import Sheet, ratio, sheets


def markdown(results: Results) -> str:
    """What was measured on, and a table for each case with its notes."""
    machine = results.machine
    where = machine.gpu or f"{machine.cpu}, {machine.cores} cores"
    commit = f", commit {machine.commit}" if machine.commit else ""
    versions = f"PyTorch {machine.torch}, Triton {machine.triton}{commit}"
    lines = [f"{where}, {versions}, {results.date}.{_ceilings(results)}"]
    for sheet in sheets(results):
        lines += ["", f"### {_capitalised(sheet.title)}", "", *_table(sheet)]
        lines += ["", *(f"- {note}" for note in sheet.notes)] if sheet.notes else []
    return "\n".join(lines) + "\n"


def summary(runs: Iterable[Results]) -> str:
    """One line for each of our own attentions, case and length: its time, the floor, and the best of its rivals."""
    rows = [_summary_row(results, m) for results in runs for m in _ours(results)]
    headings = ("case", "Gossamer", "useful TFLOP/s", "of the floor", "best rival", "ratio")
    return "\n".join(_rows(headings, rows, left=1)) + "\n"


def _ours(results: Results) -> Iterator[Measurement]:
    for case in results.cases:
        yield from (m for m in results.measurements(case) if m.contender in RIVALS)


def _summary_row(results: Results, m: Measurement) -> tuple[str, ...]:
    config, rival, share = results.config, results.best_rival(m), results.share_of_floor(m)
    size = [size_words(config, m.case)] if config.batch > 1 else []
    what = [pattern_words(config, m.contender), shape_words(config), *size, f"{m.length:,} tokens", m.case]
    return (
        ", ".join(what),
        _milliseconds(m),
        f"{1e-12 * m.work.operations / m.seconds:.3g}" if m.work else "",
        f"{100 * share:.0f} %" if share else "",
        f"{rival.contender}, {_milliseconds(rival)}" if rival else "",
        ratio(rival.seconds / m.seconds) if rival else "",
    )


def _milliseconds(m: Measurement) -> str:
    return f"{1e3 * m.seconds:.3g} ms"  # one unit throughout, so that rows compare at a glance


def _table(sheet: Sheet) -> list[str]:
    headings = [heading.replace("\n", " ") for heading in sheet.headings]
    return _rows(headings, [row for rows in sheet.groups for row in rows], left=2)


def _rows(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """A table whose first `left` columns are text."""
    rule = "|" + "---|" * left + "--:|" * (len(headings) - left)
    return [f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _ceilings(results: Results) -> str:
    reached = results.ceilings
    if reached is None:
        return ""
    return (
        f" In the same run a matrix product reached {1e-12 * reached.operations:,.3g} TFLOP/s and a copy "
        f"{1e-12 * reached.bytes:,.3g} TB/s."
    )


def _capitalised(title: str) -> str:
    return title[:1].upper() + title[1:]
