"""What was found, as Markdown, and whether promises hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gossamer.bench import Promise, verdict_rows
from gossamer.machine import Machine

from .figures import Figure
from .simulation import predictions

EFFICIENT = 0.9
"""Of linear: what more processes at as many tokens each may take."""

WORDS = {
    "links": "Bytes that each process sends; to a neighbour they are those of one all-to-all in which every process "
    "sends to the next one alone. The rate is that of bytes that cross a link: of collectives, as in a ring.",
    "context": "Attention of a sequence in shards, bfloat16; milliseconds of the slowest process, steps queued one "
    "behind the other. `alone` is `attend` in one process over as many tokens as each has, in the same run; the "
    "efficiency is their ratio. NCCL's time and the part of it that no other kernel hides are from the timeline of "
    "three steps. The error is that of outputs and gradients of 3,000 tokens against float64 in one process. The "
    "document's global heads see a tenth of all tokens, so their work grows with the sequence, and so does `alone`'s "
    "ratio to it.",
    "training": "`gossamer.training.train`, bfloat16; the time is the median of optimizer steps after three. The GPT-2 "
    "has 12 layers, 12 heads of 64, a window of 1,024 in each and rotary positions, and recomputes all but attention; "
    "its context is shared by all processes, 524,288 tokens each. FSDP2's has 12 layers, 16 heads of 128, a window of "
    "1,024, and 4 sequences of 8,192 tokens a process. What NCCL takes and what of it nothing hides is of one step's "
    "timeline, of the first process.",
    "switches": "The same of a GPT-2 with 24 layers, 16 heads of 64, a window of 1,024 and rotary positions, 0.35 "
    "billion weights, 4 sequences of 8,192 tokens a process: one switch of the configuration after the other.",
}


def promises(figures: Sequence[Figure]) -> Iterator[Promise]:
    """Those of the figures that are there."""
    single = {each.case: each for each in figures if each.section == "training" and each.processes == 1}
    for each in figures:
        if each.processes < 2:
            continue
        if each.section == "context" and each.case.startswith("window 1,024,") and each.efficiency:
            title = f"{each.case}, {each.processes} processes: at least {EFFICIENT:.0%} of linear"
            yield Promise(title, each.efficiency, kept=each.efficiency >= EFFICIENT)
        if each.section == "training" and each.case in single:
            efficiency = single[each.case].seconds / each.seconds
            title = f"{each.case}, {each.processes} processes: at least {EFFICIENT:.0%} of linear"
            yield Promise(title, efficiency, kept=efficiency >= EFFICIENT)


def page(figures: Sequence[Figure], machines: dict[str, tuple[Machine, str]]) -> str:
    """All tables; what was measured by how many processes stands together."""
    text = "# Several H200s\n\nMade by `benchmarks/h200_parallel.py`.\n"
    if kept := list(promises(figures)):
        text += "\n## Promises\n\n" + "\n".join(verdict_rows(kept)) + "\n"
    for section, words in WORDS.items():
        rows = [each for each in figures if each.section == section]
        if not rows:
            continue
        text += f"\n## {section.capitalize()}\n\n{words}\n\n"
        for processes in sorted({each.processes for each in rows}):
            machine, date = machines[f"{section} {processes}"]
            some = [each for each in rows if each.processes == processes]
            text += (
                f"{processes} × {machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, "
                f"{_commits(some)}, {date}.\n\n"
            )
            text += "\n".join(_table(section, some)) + "\n\n"
    if expected := list(predictions(figures)):
        text += (
            "## Simulation: not measured\n\nArithmetic on the figures above for more processes than were there, as if "
            "every link were the one measured between two GPUs of a host (`benchmarks/scale/simulation.py`). Links "
            "between hosts are slower: this is what they would have to be.\n\n"
            "| case | processes | tokens | ms | exposed ms | of linear |\n|---|--:|--:|--:|--:|--:|\n"
        )
        text += "\n".join(
            f"| {each.case} | {each.processes} | {each.tokens:,} | {1e3 * each.seconds:.2f} | "
            f"{1e3 * each.exposed:.3f} | {each.efficiency:.1%} |"
            for each in expected
        )
    return text.rstrip()


def _commits(figures: Sequence[Figure]) -> str:
    """The code of all of them; where they differ, of which."""
    of = {commit: [each.case for each in figures if each.commit == commit] for commit in (x.commit for x in figures)}
    if len(of) == 1:
        return f"commit {figures[0].commit}"
    return "commits " + " and ".join(f"{commit} ({'; '.join(cases)})" for commit, cases in of.items())


def _table(section: str, rows: Sequence[Figure]) -> Iterator[str]:
    if section == "links":
        yield "| case | bytes | ms | GB/s |\n|---|--:|--:|--:|"
        for each in rows:
            rate = each.tokens * _crossings(each) / each.seconds / 1e9
            yield f"| {each.case} | {each.tokens:,} | {1e3 * each.seconds:.3f} | {rate:.1f} |"
    elif section == "context":
        yield "| case | tokens | alone, ms | ms | of linear | NCCL, ms | exposed, ms | MB sent | error |"
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        for each in rows:
            alone, linear = _shown(each.alone, 1e3), "" if each.efficiency is None else f"{each.efficiency:.1%}"
            sent, error = _shown(each.nbytes, 1e-6), "" if each.error is None else f"{each.error:.1e}"
            yield (
                f"| {each.case} | {each.tokens:,} | {alone} | {1e3 * each.seconds:.2f} | {linear} | "
                f"{_shown(each.exchanging, 1e3)} | {_shown(each.exposed, 1e3)} | {sent} | {error} |"
            )
    else:
        yield "| case | tokens a step | s a step | tokens/s | GiB | MB sent | NCCL, ms | exposed, ms | of peak |"
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        for each in rows:
            share = "" if each.share_of_peak is None else f"{each.share_of_peak:.1%}"
            yield (
                f"| {each.case} | {each.tokens:,} | {each.seconds:.3f} | {each.tokens / each.seconds:,.0f} | "
                f"{_shown(each.peak, 2**-30)} | {_shown(each.nbytes, 1e-6)} | {_shown(each.exchanging, 1e3)} | "
                f"{_shown(each.exposed, 1e3)} | {share} |"
            )


def _crossings(each: Figure) -> float:
    """How often the bytes that a process gives cross a link of its own, in a ring."""
    others = each.processes - 1
    if each.case == "all-reduce":
        return 2 * others / each.processes
    return 1.0 if each.case == "to a neighbour" else float(others)


def _shown(number: float | None, scale: float) -> str:
    return "" if number is None else f"{scale * number:.2f}"
