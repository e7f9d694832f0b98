"""Measures what Gossamer promises for training a GPT-2 124M on one H200, and says whether it holds.

    python benchmarks/h200_gpt2.py [--folder FOLDER] [--commit COMMIT] [--small]

The whole step counts: forward, loss, backward and AdamW, in bf16 by autocast, on 65,536 tokens in all; blocks and loss
are compiled. The rivals are the same model with dense causal attention by cuDNN's and by FlashAttention's kernels.
Writes `h200_gpt2.json` and `h200_gpt2.md` after each length. `--commit` names the code where its copy has no history;
`--small` is a rehearsal that any machine can run. Exits with 1 if a promise is broken.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from gossamer import GPT2, SparseAttentionConfig, attend
from gossamer.atomic import write_file
from gossamer.bench import BenchConfig, Measurement, ModelBench, Promise, Results, show_progress, verdict_rows
from gossamer.bench.attention_cases import TRAINING
from gossamer.bench.case import Case, Contender, Step
from gossamer.bench.clock import clock_for
from gossamer.bench.driver import measure
from gossamer.bench.model_case import TrainingStep, model_backends, model_fault, precision_fault, training_step
from gossamer.bench.peers import dense_attention
from gossamer.bench.results import Outcome
from gossamer.bench.setting import Setting
from gossamer.machine import this_machine

RESULTS = Path(__file__).parent / "results"
NAME = "h200_gpt2"
SPEEDUPS = {16384: 2.2, 65536: 4.5}
TRIAL_LENGTH = 1024
DENSE = {"dense, cuDNN": SDPBackend.CUDNN_ATTENTION, "dense, flash": SDPBackend.FLASH_ATTENTION}
DOCUMENT, WINDOW = "the document's pattern", "window 256"
SPARSE = {
    DOCUMENT: SparseAttentionConfig(),
    WINDOW: SparseAttentionConfig(local_heads=12, global_heads=0, window_size=256, adaptive_window=False),
}
OPERATORS = {  # how the names begin that a profiler has for attention
    "dense, cuDNN": "aten::_scaled_dot_product_cudnn_attention",
    "dense, flash": "aten::_scaled_dot_product_flash_attention",
    DOCUMENT: "gossamer::attend",
    WINDOW: "gossamer::attend",
}
CONFIG = BenchConfig(
    heads=12,
    head_width=64,
    model=ModelBench(lengths=tuple(SPEEDUPS), layers=12, vocabulary=50304),
    tokens=65536,
    repeats=7,
    warmup=2,
    precision="bf16",
    device="cuda",
)
ALONE_REPEATS = 3

Seconds = dict[tuple[str, int], float]
"""What attention alone takes in one layer, forward and backward, for a contender and a length."""


def small(config: BenchConfig) -> BenchConfig:
    """The same models at a size that any machine can rehearse."""
    model = ModelBench(lengths=tuple(n // 256 for n in config.model.lengths), layers=2, vocabulary=512)
    return replace(config, head_width=16, model=model, tokens=256, repeats=1, warmup=1, device="cpu")


def case(setting: Setting, alone: Seconds) -> Case:
    """The training step by everyone; the time of each one's attention is put into `alone`."""
    sees_all = cache(partial(model_fault, setting))
    contenders = []
    for name, kernel in DENSE.items():
        at_its_size = partial(fault, setting, name, alone)
        contenders.append(Contender(name, partial(prepare, setting, kernel=kernel), sees_all, fault_at=at_its_size))
    for name, sparse in SPARSE.items():
        made, exact = partial(prepare, setting, sparse=sparse), partial(precision_fault, setting, sparse, TRIAL_LENGTH)
        at_its_size, ran = partial(fault, setting, name, alone), partial(model_backends, setting, sparse)
        contenders.append(Contender(name, made, exact, fault_at=at_its_size, backends=ran))
    return Case("GPT-2 124M training step", setting.config.model.lengths, tuple(contenders))


def prepare(
    setting: Setting, length: int, *, sparse: SparseAttentionConfig | None = None, kernel: SDPBackend | None = None
) -> TrainingStep:
    """A compiled step; `kernel` is the one that dense attention has to take."""
    step = training_step(setting, length, sparse, batch=setting.batch(length))
    return replace(step, forward=compiled(step.model, kernel))


def compiled(model: GPT2, kernel: SDPBackend | None) -> GPT2:
    """The same parameters in a model whose blocks, by one graph for all of them, and whose loss are compiled.

    One graph of the whole model would take a minute to compile, for each contender and length.
    """
    twin = deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for block in twin.h:
        forward = block.forward if kernel is None else by(kernel, block.forward)
        block.forward = torch.compile(forward, fullgraph=True, dynamic=False)
    twin.loss = torch.compile(twin.loss, fullgraph=True, dynamic=False)
    return twin


def by(kernel: SDPBackend, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with dense attention by this kernel alone."""

    def forward(*tensors: Any, **settings: Any) -> Any:
        with sdpa_kernel(kernel):
            return function(*tensors, **settings)

    return forward


def fault(setting: Setting, name: str, alone: Seconds, length: int, step: Step) -> str | None:
    """Whether the compiled model has another loss than the plain one, or its attention ran by something else."""
    assert isinstance(step, TrainingStep)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        found = step.loss(step.forward).item()
    with torch.no_grad():
        plain = step.loss(step.model).item()
    if not abs(found - plain) <= torch.finfo(step.dtype).eps / 2 * abs(plain):
        return f"the compiled loss is {found:.4f}, the plain one {plain:.4f}"
    if not any(row.key.startswith(OPERATORS[name]) for row in profiler.key_averages()):
        return f"{OPERATORS[name]} did not run"
    alone[name, length] = attention_seconds(setting, name, length)
    return None


def attention_seconds(setting: Setting, name: str, length: int) -> float:
    """Median time of one layer's attention, forward and backward, on random numbers."""
    sparse = SPARSE.get(name)
    attention = by(DENSE[name], dense_attention) if sparse is None else partial(attend, pattern=sparse.pattern(length))
    step, clock = TRAINING.step(attention, setting.draw(length)), clock_for(setting.device)
    step()
    return statistics.median(clock(step) for _ in range(ALONE_REPEATS))


def promises(results: Results) -> Iterator[Promise]:
    """Each promise and the figure that decides it."""
    for length, least in SPEEDUPS.items():
        m = next((m for c in results.cases for m in results.measurements(c, DOCUMENT) if m.length == length), None)
        ratio = m and results.speedup(m, over=tuple(DENSE))
        text = f"{length:,} tokens of context, {DOCUMENT}: at least {least:g}x the tokens/s of the fastest dense model"
        yield Promise(text, ratio, kept=(ratio or 0) >= least)


def page(results: Results, alone: Seconds, verdicts: Sequence[Promise]) -> str:
    """The results as Markdown."""
    return "\n".join(
        [
            "# Training a GPT-2 124M",
            "",
            *introduction(results),
            "",
            "| context | attention | backend | ms | tokens/s | attention's share | peak GiB | × fastest dense |",
            "|--:|---|---|--:|--:|--:|--:|--:|",
            *(row(results, alone, m) for c in results.cases for m in results.measurements(c)),
            "",
            *(f"- {absence}" for c in results.cases for absence in results.absences(c)),
            "",
            *verdict_rows(verdicts),
            "",
        ]
    )


def introduction(results: Results) -> Iterator[str]:
    """What was trained, where, and what the columns mean."""
    machine, config, model = results.machine, results.config, results.config.model
    yield (
        f"{model.layers} layers, {config.heads} heads × {config.head_width}, vocabulary {model.vocabulary:,}; "
        f"{config.tokens:,} tokens a step; {config.precision} by autocast, AdamW, blocks and loss by `torch.compile`."
    )
    yield (
        f"{machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, Gossamer {machine.gossamer}, "
        f"commit {machine.commit or 'not known'}, {results.date}. Made by `benchmarks/h200_gpt2.py`."
    )
    yield (
        f"Milliseconds: median (fastest–slowest) of up to {config.repeats} steps, contenders in turns. Attention's "
        "share: what forward and backward of attention alone take, times the layers. Memory above weights and "
        "optimizer state."
    )


def row(results: Results, alone: Seconds, m: Measurement) -> str:
    milliseconds = f"{1e3 * m.seconds:.1f} ({1e3 * m.fastest:.1f}–{1e3 * m.slowest:.1f})"
    ratio = results.speedup(m, over=tuple(DENSE))
    return (
        f"| {m.length:,} | {m.contender} | {m.backends or '–'} | {milliseconds} | "
        f"{results.config.tokens / m.seconds:,.0f} | {share(results, alone, m):.0%} | {m.peak_bytes / 2**30:.1f} | "
        f"{'–' if ratio is None else f'{ratio:.2f}'} |"
    )


def share(results: Results, alone: Seconds, m: Measurement) -> float:
    """Of a step's time, what attention alone takes in all layers."""
    return results.config.model.layers * alone[m.contender, m.length] / m.seconds


def write(results: Results, alone: Seconds, folder: Path) -> str:
    """Leave what is known so far in the folder; returns the page."""
    verdicts = list(promises(results))
    shares = [
        {"contender": m.contender, "length": m.length, "attention_share": share(results, alone, m)}
        for c in results.cases
        for m in results.measurements(c)
    ]
    record = results.record() | {"attention": shares, "promises": [asdict(promise) for promise in verdicts]}
    text = page(results, alone, verdicts)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / f"{NAME}.json", f"{json.dumps(record, indent=1)}\n".encode())
    write_file(folder / f"{NAME}.md", text.encode())
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    show_progress()
    setting, alone = Setting(small(CONFIG) if asked.small else CONFIG), Seconds()
    machine, date = replace(this_machine(), commit=asked.commit), datetime.now(UTC).isoformat(timespec="seconds")
    outcomes: tuple[Outcome, ...] = ()
    with torch._dynamo.config.patch(recompile_limit=64):  # one class of blocks, for each contender and length
        for outcome in measure(case(setting, alone), setting, lambda outcome: None):
            outcomes += (outcome,)
            results = Results(setting.config, machine, date, outcomes)
            text = write(results, alone, asked.folder)
    print(text)
    return 0 if all(promise.kept for promise in promises(results)) else 1


if __name__ == "__main__":
    sys.exit(main())
