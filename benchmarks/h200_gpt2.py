"""Measures what Gossamer promises for training a GPT-2 124M on one H200, and says whether it holds.

    python benchmarks/h200_gpt2.py

The whole step counts: forward, loss, backward and AdamW, compiled, in bf16 by autocast, on 65,536 tokens in all. The
rivals are the same model with dense causal attention by cuDNN's and by FlashAttention's kernels. Takes minutes, most of
them compilation. Writes `results/h200_gpt2.json` and `results/h200_gpt2.md`. Exits with 1 if a promise is broken.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from gossamer import SparseAttentionConfig
from gossamer.bench import BenchConfig, Measurement, ModelBench, Results
from gossamer.bench.case import Case, Contender, Step
from gossamer.bench.driver import measure
from gossamer.bench.model_case import TrainingStep, model_fault, precision_fault, training_step
from gossamer.bench.promises import Promise, verdict_rows
from gossamer.bench.setting import Setting
from gossamer.machine import this_machine

RESULTS = Path(__file__).parent / "results"
TOKENS = 65536
SPEEDUPS = {16384: 2.2, 65536: 4.5}
TRIAL_LENGTH = 1024
DENSE = {"dense, cuDNN": SDPBackend.CUDNN_ATTENTION, "dense, flash": SDPBackend.FLASH_ATTENTION}
DOCUMENT, WINDOW = "the document's pattern", "window 256"
SPARSE = {
    DOCUMENT: SparseAttentionConfig(),
    WINDOW: SparseAttentionConfig(local_heads=12, global_heads=0, window_size=256, adaptive_window=False),
}
ATTENTION = {  # what the profiler calls the operators of attention
    "dense, cuDNN": "aten::_scaled_dot_product_cudnn_attention",
    "dense, flash": "aten::_scaled_dot_product_flash_attention",
    DOCUMENT: "gossamer::attend",
    WINDOW: "gossamer::attend",
}
CONFIG = BenchConfig(
    heads=12,
    head_width=64,
    model=ModelBench(lengths=tuple(SPEEDUPS), layers=12, vocabulary=50304),
    repeats=10,
    warmup=2,
    precision="bf16",
    device="cuda",
)


def case(setting: Setting, shares: dict[tuple[str, int], float]) -> Case:
    """The training step by everyone; attention's share of each is put into `shares`."""
    sees_all = cache(partial(model_fault, setting))
    contenders = [
        Contender(name, partial(prepare, setting, kernel=kernel), sees_all, fault_at=partial(fault, name, shares))
        for name, kernel in DENSE.items()
    ]
    for name, sparse in SPARSE.items():
        exact = partial(precision_fault, setting, sparse, TRIAL_LENGTH)
        contenders.append(
            Contender(name, partial(prepare, setting, sparse=sparse), exact, fault_at=partial(fault, name, shares))
        )
    return Case("GPT-2 124M training step", setting.config.model.lengths, tuple(contenders))


def prepare(
    setting: Setting, length: int, *, sparse: SparseAttentionConfig | None = None, kernel: SDPBackend | None = None
) -> TrainingStep:
    """A compiled step; `kernel` is the one that dense attention has to take."""
    step = training_step(setting, length, sparse, batch=max(1, TOKENS // length))
    forward = step.model if kernel is None else by(kernel, step.model)
    return replace(step, forward=torch.compile(forward, fullgraph=True, dynamic=False))


def by(kernel: SDPBackend, model: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*text: torch.Tensor) -> Any:
        with sdpa_kernel(kernel):
            return model(*text)

    return forward


def fault(name: str, shares: dict[tuple[str, int], float], length: int, step: Step) -> str | None:
    """Whether the compiled model has another loss than the plain one, or its attention ran by something else."""
    assert isinstance(step, TrainingStep)
    compiled = step.loss(step.forward).item()
    with torch.no_grad():
        plain = step.loss(step.model).item()
    if not abs(compiled - plain) <= torch.finfo(step.dtype).eps / 2 * abs(plain):
        return f"the compiled loss is {compiled:.4f}, the plain one {plain:.4f}"
    shares[name, length] = share = attention_share(step, ATTENTION[name])
    return None if share else f"{ATTENTION[name]} did not run"


def attention_share(step: Step, operator: str) -> float:
    """Part of the device's time in one step that is spent in `operator` and its backward."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    rows = profiler.key_averages()
    attention = sum(row.device_time_total for row in rows if row.key in (operator, f"{operator}_backward"))
    return attention / sum(row.self_device_time_total for row in rows if row.device_type == DeviceType.CUDA)


def promises(results: Results) -> Iterator[Promise]:
    """Each promise and the figure that decides it."""
    for length, least in SPEEDUPS.items():
        m = results.measurement(results.cases[0], DOCUMENT, length)
        ratio = m and results.speedup(m, over=tuple(DENSE))
        text = f"{length:,} tokens of context, {DOCUMENT}: at least {least:g}x the tokens/s of the fastest dense model"
        yield Promise(text, ratio, kept=(ratio or 0) >= least)


def page(results: Results, shares: dict[tuple[str, int], float], verdicts: list[Promise]) -> str:
    """The results as Markdown."""
    machine = results.machine
    return "\n".join(
        [
            "# Training a GPT-2 124M",
            "",
            f"12 layers, 12 heads × 64, vocabulary 50,304; {TOKENS:,} tokens a step; bf16 by autocast, AdamW, "
            f"`torch.compile`. {machine.gpu}, PyTorch {machine.torch}, Triton {machine.triton}, Gossamer "
            f"{machine.gossamer}, {results.date}. Milliseconds: median (fastest–slowest) of {results.config.repeats} "
            "steps, contenders in turns. Memory above weights and optimizer state. Made by `benchmarks/h200_gpt2.py`.",
            "",
            "| context | attention | ms | tokens/s | attention's share | peak GiB | × fastest dense |",
            "|--:|---|--:|--:|--:|--:|--:|",
            *(row(results, shares, m) for m in results.measurements(results.cases[0])),
            *(f"- {absence}" for absence in results.absences(results.cases[0])),
            "",
            *verdict_rows(verdicts),
            "",
        ]
    )


def row(results: Results, shares: dict[tuple[str, int], float], m: Measurement) -> str:
    milliseconds = f"{1e3 * m.seconds:.1f} ({1e3 * m.fastest:.1f}–{1e3 * m.slowest:.1f})"
    ratio = results.speedup(m, over=tuple(DENSE)) or 0
    return (
        f"| {m.length:,} | {m.contender} | {milliseconds} | {TOKENS / m.seconds:,.0f} | "
        f"{shares[m.contender, m.length]:.0%} | {m.peak_bytes / 2**30:.1f} | {ratio:.2f} |"
    )


def main() -> int:
    setting, shares = Setting(CONFIG), {}
    with torch._dynamo.config.patch(recompile_limit=64):  # one model class, compiled for each contender and length
        outcomes = tuple(measure(case(setting, shares), setting, partial(print, flush=True)))
    results = Results(CONFIG, this_machine(), datetime.now(UTC).isoformat(timespec="seconds"), outcomes)
    verdicts = list(promises(results))
    table = page(results, shares, verdicts)
    parts = [{"contender": name, "length": n, "attention_share": share} for (name, n), share in shares.items()]
    RESULTS.mkdir(exist_ok=True)
    record = results.record() | {"attention": parts, "promises": [asdict(promise) for promise in verdicts]}
    (RESULTS / "h200_gpt2.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "h200_gpt2.md").write_text(table, encoding="utf-8")
    print(table)
    return 0 if all(promise.kept for promise in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
