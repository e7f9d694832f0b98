"""What was found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gossamer.bench import Measurement, Promise, verdict_rows
from gossamer.machine import Machine

from .decode import TOKENS
from .models import sinks
from .prefill import PREFILL
from .promises import FLEX, SDPA
from .records import Endless, Race, Report

WHO = {
    "sdpa": "dense, transformers' `sdpa` as it comes; decoding over its growing cache",
    "cudnn": "the same by cuDNN's kernel alone",
    "sdpa-compiled": "dense, `sdpa` over a static cache, the whole model by "
    '`torch.compile(mode="reduce-overhead", fullgraph=True)`',
    "flex-dense": "dense, transformers' own `flex_attention`",
    "flex": "our pattern by FlexAttention's compiled kernel over a block mask; decoding over a static cache",
    "flex-compiled": 'the same within the whole model by `torch.compile(mode="reduce-overhead", fullgraph=True)`',
    "gossamer": "`gossamer.sparsify(model, pattern)`, eager",
    "gossamer-graph": "the same by the steps of `stream`, which a CUDA graph replays",
    "gossamer-compiled": "the same with `layer.compile()` called for each of the model's layers before",
}
NOTES = (
    "All share one model's weights; no one is timed whose logits are wrong. Milliseconds: median (fastest–slowest), "
    "contenders in turns, by the wall clock from an idle machine to an idle machine; at decoding, of one token among "
    f"{TOKENS} in a row, behind random keys that are the same for everyone. Peak: what the job needs beyond the "
    "weights and, at decoding, the cache. `sdpa` with the pattern as a mask takes no part: at 65,536 tokens that mask "
    "has 4.3 billion entries, and it keeps away the kernels that are fast."
)


def page(report: Report, verdicts: Sequence[Promise]) -> str:
    """Promises first, then who took part, then a table for each section."""
    lines = ["# Sparse models of transformers", "", "Made by `benchmarks/h200_huggingface.py`.", ""]
    lines += ["## Promises", "", *verdict_rows(verdicts), ""]
    if report.races:
        lines += ["## Contenders", "", *contender_lines(report), ""]
    for name, race in report.races.items():
        lines += [f"## {name.capitalize()}", "", *race_lines(race), ""]
    if report.endless:
        lines += ["## Endless", "", *endless_lines(report.endless), ""]
    return "\n".join(lines)


def contender_lines(report: Report) -> Iterator[str]:
    """Each contender in words, and what is true of all of them."""
    took_part = {name for race in report.races.values() for name in race.results.contenders(race.case)}
    yield from (f"- `{name}`: {words}" for name, words in WHO.items() if name in took_part)
    yield ""
    yield NOTES


def race_lines(race: Race) -> Iterator[str]:
    """The model, the machine, the table, and who is missing from it."""
    config, model = race.results.config, race.results.config.model
    yield (
        f"A Llama of random weights: {model.layers} layers, {config.heads} heads on {config.key_heads} key heads × "
        f"{config.head_width}, vocabulary {model.vocabulary:,}, {config.precision}; every token sees the last "
        f"{config.window:,} and the first {sinks(config)}. Batch {config.batch}."
    )
    yield where(race.results.machine, race.transformers, race.results.date)
    yield ""
    yield "| context | contender | ms | tokens/s | cache MiB | peak GiB | × fastest sdpa | × fastest flex |"
    yield "|--:|---|--:|--:|--:|--:|--:|--:|"
    yield from (row(race, m) for m in race.results.measurements(race.case))
    yield ""
    yield from (f"- {absence}" for absence in race.results.absences(race.case))


def row(race: Race, m: Measurement) -> str:
    config = race.results.config
    tokens = config.batch * (m.length if race.case == PREFILL else 1)
    milliseconds = f"{1e3 * m.seconds:.2f} ({1e3 * m.fastest:.2f}–{1e3 * m.slowest:.2f})"
    over = [race.results.speedup(m, over=rivals) for rivals in (SDPA, FLEX)]
    ratios = " | ".join("–" if ratio is None else f"{ratio:.2f}" for ratio in over)
    held = race.held[m.contender, m.length] / 2**20
    return (
        f"| {m.length:,} | {m.contender} | {milliseconds} | {tokens / m.seconds:,.0f} | {held:,.1f} | "
        f"{m.peak_bytes / 2**30:.2f} | {ratios} |"
    )


def endless_lines(endless: Endless) -> Iterator[str]:
    """How the text without end was written, and its first and last block."""
    yield (
        f"The same model writes by `stream`, greedy, behind a prompt of {endless.prompt:,} tokens, which fills the "
        f"window; {endless.size:,} tokens more are the warm-up, and do not count. Means of {endless.size:,} tokens by "
        f"the wall clock; memory besides the weights."
    )
    yield where(endless.machine, endless.transformers, endless.date)
    yield ""
    if endless.fault:
        yield f"- failed: {endless.fault}"
        return
    yield "| tokens | ms a token | memory MiB |"
    yield "|--:|--:|--:|"
    for number in sorted({0, len(endless.seconds) // 2, len(endless.seconds) - 1}):
        count, milliseconds = endless.size * (number + 1), 1e3 * endless.seconds[number]
        yield f"| {count:,} | {milliseconds:.3f} | {endless.held[number] / 2**20:,.1f} |"


def where(machine: Machine, transformers: str, date: str) -> str:
    """The machine, the versions and the day."""
    return (
        f"{machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, transformers {transformers}, "
        f"Gossamer {machine.gossamer}, commit {machine.commit or 'not known'}, {date}."
    )
