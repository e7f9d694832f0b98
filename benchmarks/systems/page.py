"""What was found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gossamer.bench import Measurement, Promise, Results, verdict_rows

from .blocks import BLOCK, SHARE
from .promises import Runs

WORDS = {
    "blocks": f"Random blocks of {BLOCK}, {SHARE:.0%} of all, others for each head; not causal. `cudnn` is dense. "
    "Lists of blocks were made before, but for a `layout at run time`, whose tables are made at each call. `fa4` adds "
    "up gradients of queries in whatever order they come; `gossamer` gives the same bits each time.",
    "longformer": "`LongformerSelfAttention` of transformers and the projection behind it, and our "
    "`LongformerAttention`: two-sided window of 512, one global token. Which one it is was found once before, as a "
    "model finds it for all its layers; theirs looks in each layer. Then the pattern alone, without projections. Ours "
    "at half the window too.",
    "bigbird": "`BigBirdBlockSparseAttention` of transformers and the projection behind it, and our "
    "`BigBirdAttention`: blocks of 64, three random ones. Theirs as it is evaluated: in training it would draw its "
    "blocks at each call, on the CPU.",
    "reformer": "`LSHSelfAttention` of transformers and the projection behind it, and our `LSHAttention`: four rounds "
    "of hashing, chunks of 64.",
}
NOTES = (
    "Milliseconds on the GPU, cold L2 cache, contenders in turns: median (fastest–slowest). The batch is as many "
    "sequences as make 65,536 tokens. Modules: forward, and gradients of the input and every weight. Nobody is timed "
    "whose results are wrong: blocks are judged by dense attention with a mask in float32, at their full size; our "
    "modules by theirs in float32, with random blocks and buckets handed over."
)


def page(runs: Runs, verdicts: Sequence[Promise]) -> str:
    """Promises first, then a table for each section."""
    lines = ["# Longformer, BigBird, Reformer and blocks on one H200", "", "Made by `benchmarks/h200_systems.py`.", ""]
    lines += ["## Promises", "", *verdict_rows(verdicts), "", NOTES, ""]
    for name, results in runs.items():
        lines += [f"## {name.capitalize()}", "", WORDS[name], "", *section(results), ""]
    return "\n".join(lines)


def section(results: Results) -> Iterator[str]:
    """The shape, the machine, the table, and who is missing from it."""
    config, machine = results.config, results.machine
    yield f"{config.heads} heads × {config.head_width}, {config.precision}, {config.tokens:,} tokens in all."
    yield (
        f"{machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, Gossamer {machine.gossamer}, "
        f"commit {machine.commit or 'not known'}, {results.date}."
    )
    yield ""
    yield "| case | length | contender | ms | peak GiB | × gossamer's time |"
    yield "|---|--:|---|--:|--:|--:|"
    for case in results.cases:
        yield from (row(results, case, m) for m in results.measurements(case))
    yield ""
    for case in results.cases:
        yield from (f"- {absence}" for absence in results.absences(case))


def row(results: Results, case: str, m: Measurement) -> str:
    milliseconds = f"{1e3 * m.seconds:.2f} ({1e3 * m.fastest:.2f}–{1e3 * m.slowest:.2f})"
    ours = results.measurement(case, "gossamer", m.length)
    ratio = f"{m.seconds / ours.seconds:.2f}" if ours else "–"
    return f"| {case} | {m.length:,} | {m.contender} | {milliseconds} | {m.peak_bytes / 2**30:.2f} | {ratio} |"
