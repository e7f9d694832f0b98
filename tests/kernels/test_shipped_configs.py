"""Every kernel that a backend launches on Hopper compiles for it, within its registers and its shared memory.

The cases reach every entry of the backends' tables. Those that only repeat another's code for a further width or
dtype are marked slow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from gossamer.kernels import BACKENDS, Backend, Problem, Saved, Softmax
from gossamer.patterns import (
    Causal,
    Dilated,
    Documents,
    Pattern,
    RandomBlocks,
    Sinks,
    Strided,
    Tokens,
    Window,
    presets,
)
from gossamer.plan import plan

triton = pytest.importorskip("triton", reason="the kernels need Triton to compile")

from tests.kernels import sm90  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process and compiles nothing", allow_module_level=True)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LOCAL = Causal() & Window(256)


@dataclass(frozen=True)
class Case:
    """A call, and the gradients of its output; lengths and heads are as few as reach the kernels in question."""

    pattern: Pattern = LOCAL
    dtype: torch.dtype = BF16
    width: int = 64
    value_width: int | None = None
    queries: int = 1024
    keys: int = 1024
    heads: int = 1
    key_heads: int = 1
    sinks: bool = False
    softcap: float = 0.0
    dropout: float = 0.0
    lengths: bool = False
    lse_gradient: bool = False
    within: bool = False
    runs: bool = False

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return (
            (1, self.heads, self.queries, self.width),
            (1, self.key_heads, self.keys, self.width),
            (1, self.key_heads, self.keys, self.value_width or self.width),
        )

    @property
    def problem(self) -> Problem:
        return Problem(
            plan=plan(self.pattern, self.queries, self.keys, self.heads),
            device=torch.device("cuda", 63), dtype=self.dtype, batch=1, key_heads=self.key_heads,
            width=self.width, value_width=self.value_width or self.width,
            softcap=self.softcap, dropout=self.dropout, has_sinks=self.sinks, lengths=self.lengths,
            within=self.within, runs=self.runs,
        )  # fmt: skip


def compiled(backend: Backend, case: Case) -> list[sm90.Compiled]:
    """What the backend launches for the case, forward and, where it does not refuse, backward."""
    q, k, v = (torch.zeros(shape, dtype=case.dtype) for shape in case.shapes)
    softmax = Softmax(
        0.125, case.softcap, case.dropout,
        seed=torch.zeros(1, dtype=torch.int64) if case.dropout else None,
        lengths=torch.zeros(1, dtype=torch.int32) if case.lengths else None,
        within=torch.zeros(1, 2, dtype=torch.int32) if case.within else None,
        runs=(torch.zeros(1, case.queries, dtype=torch.int32),) * 2 if case.runs else None,
    )  # fmt: skip
    sinks = torch.zeros(case.heads) if case.sinks else None
    backward = replace(case.problem, backward=True)
    with sm90.hopper() as kernels:
        assert backend.refuses(case.problem) is None
        out, lse = backend.forward(q, k, v, sinks, case.problem.plan, softmax)
        if backend.refuses(backward) is None:
            saved, grad_lse = Saved(q, k, v, out, lse, sinks), torch.zeros_like(lse) if case.lse_gradient else None
            backend.backward(saved, torch.zeros_like(out), grad_lse, case.problem.plan, softmax)
    return kernels


HOPPER = {
    **{f"band {n}": Case(Causal() & Window(n)) for n in (64, 128, 256, 512)},
    **{f"band {n} × 128": Case(Causal() & Window(n), width=128) for n in (128, 256)},
    "band with a torn edge": Case(Causal() & Window(200)),
    "band, every option": Case(Window(100), sinks=True, lse_gradient=True),
    "long band": Case(Causal()),
    "long band × 128": Case(Causal(), width=128),
    "grouped heads": Case(heads=4, key_heads=1, dtype=FP16),
    "columns": Case(Causal() & Strided(10)),
    "band and columns": Case(Causal() & (Window(256) | Sinks(4)), sinks=True),
    "band and columns × 128": Case(Causal() & (Window(256) | Strided(16)), width=128),
    "rows": Case(Causal() & (Window(64) | Tokens([500]).T)),
    "whole rows": Case(presets.longformer(512), sinks=True, lse_gradient=True),
    "whole rows of grouped heads": Case(presets.longformer(128, tuple(range(70))), heads=2, dtype=FP16),
    "within ends": Case(Window(256) | Tokens([0, 500]) | Tokens([0, 500]).T, within=True, lse_gradient=True),
    "runs": Case(Causal() | ~Causal(), runs=True),
    "long rows within ends": Case(
        presets.bigbird_itc(80, 1), queries=5120, keys=5120, sinks=True, within=True, lse_gradient=True
    ),
}
HOPPER_SLOW = {
    "within ends × 128": Case(Causal() & (Window(256) | Strided(16)), width=128, within=True, lse_gradient=True),
    "within ends, dilated": Case(Dilated(64, 4) & Documents([500, 524]), within=True),
    "whole rows × 128": Case(presets.longformer(512), width=128),
    "whole rows, three heads a key head": Case(presets.longformer(512), heads=3, lse_gradient=True),
    "whole rows, float16 × 128, three heads a key head": Case(presets.longformer(512), heads=3, width=128, dtype=FP16),
    "whole rows of narrow values": Case(presets.longformer(512), width=128, value_width=40),
    "whole rows of wide values": Case(presets.longformer(512), value_width=128, heads=3, sinks=True),
    "many columns": Case(presets.longformer(512, tuple(range(70))), width=128),
    "runs × 128": Case(Causal() | ~Causal(), width=128, runs=True, heads=4, dtype=FP16),
    "runs of narrow values": Case(Causal() | ~Causal(), width=128, value_width=64, runs=True),
    **{f"band {n}": Case(Causal() & Window(n)) for n in (40, 192, 320, 384, 448, 576, 640, 700)},
    **{f"band {n} × 128": Case(Causal() & Window(n), width=128) for n in (64, 100, 192, 200, 384, 512)},
    "float16 band": Case(dtype=FP16),
    "float16 band × 128": Case(dtype=FP16, width=128),
    "columns × 128": Case(Causal() & Strided(10), width=128),
    "narrow values": Case(Causal(), width=128, value_width=64),
    "narrow values, columns": Case(Causal() & Strided(10), dtype=FP16, width=128, value_width=40),
    "wide values": Case(Causal(), value_width=128),
    "narrow values, band and columns": Case(Causal() & (Window(256) | Sinks(4)), width=128, value_width=40),
    "wide values, band and columns": Case(Causal() & (Window(256) | Sinks(4)), value_width=128),
    "float16, band and columns": Case(Causal() & (Window(256) | Sinks(4)), dtype=FP16, width=128),
    "three heads a key head": Case(Causal() & Window(512), heads=3, width=128, lse_gradient=True),
    "dilated and packed": Case(Dilated(64, 4) & Documents([500, 524])),
    **{f"blocks of {size} × {width}": Case(RandomBlocks(size, 2, 0) & ~Window(5), width=width, lse_gradient=True)
       for size in (64, 128) for width in (64, 128)},
    "blocks, heads that share keys": Case(RandomBlocks(64, 2, 0), heads=2, width=128, dtype=FP16),
    "long rows of 128 × 128": Case(presets.bigbird_itc(80, 1, 128), width=128, queries=10240, keys=10240, within=True),
    "blocks within ends": Case(RandomBlocks(128, 2, 0), width=128, sinks=True, within=True),
}  # fmt: skip
TRITON = {
    "bfloat16": Case(Causal() & (Window(256) | Sinks(4)), sinks=True),
    "float32": Case(Causal() & (Window(256) | Sinks(4)), sinks=True, dtype=FP32),
    "every option": Case(softcap=3.0, dropout=0.1, heads=4, dtype=FP16, lse_gradient=True),
    "rows": Case(Window(64) | Tokens([0, 500]) | Tokens([0, 500]).T, dropout=0.1),
    "blocks": Case(presets.bigbird(64)),
    "blocks, every option": Case(presets.bigbird(64), softcap=3.0, dropout=0.1, heads=2, sinks=True, lse_gradient=True),
    "within ends": Case(Dilated(64, 4) & Documents([500, 524]), sinks=True, within=True),
    "runs": Case(Causal() | ~Causal(), runs=True),
    "runs × 512, heads that share keys": Case(Causal() | ~Causal(), runs=True, width=512, heads=4, lse_gradient=True),
}  # fmt: skip
HALF_AND_SINGLE = (*((BF16, width) for width in (64, 128, 256, 512)), *((FP32, width) for width in (64, 128, 256)))
TRITON_SLOW = {
    **{f"blocks of {size}, {dtype} × {width}": Case(RandomBlocks(size, 2, 0) & ~Window(5), dtype=dtype, width=width)
       for dtype, width in HALF_AND_SINGLE for size in (16, 32, 128)},
    **{f"blocks, {dtype}, every option × {width}":
       Case(presets.bigbird(64), dtype=dtype, width=width, softcap=3.0, dropout=0.1, sinks=True, lse_gradient=True)
       for dtype, width in HALF_AND_SINGLE},
    **{f"{dtype} × {width}": Case(Causal() & (Window(256) | Sinks(4)), dtype=dtype, width=width, sinks=True)
       for dtype, width in HALF_AND_SINGLE if width > 64},
    **{f"float16 × {width}": Case(dtype=FP16, width=width, value_width=width // 2)
       for width in (40, 80, 128, 256, 400, 512)},
    **{f"{dtype}, every option × {width}": Case(dtype=dtype, width=width, softcap=3.0, dropout=0.1, sinks=True)
       for dtype, width in HALF_AND_SINGLE},
    "512 wide, every option, heads that share keys": Case(
        Causal() & (Window(64) | Strided(16)), FP16, 512, heads=4, softcap=3.0, dropout=0.1, lse_gradient=True
    ),
    "512 wide within ends": Case(Dilated(64, 4) & Documents([500, 524]), width=512, sinks=True, within=True),
    "dilated and packed": Case(Dilated(64, 4) & Documents([500, 524])),
}  # fmt: skip

DECODE = {
    "window and columns": Case(Causal() & (Window(512) | Strided(100)), queries=1, keys=4096, heads=4),
    "into a cache": Case(queries=2, keys=4096, lengths=True, sinks=True),
}
DECODE_SLOW = {
    **{f"float32 × {width}": Case(dtype=FP32, width=width, queries=4, keys=4096) for width in (64, 128, 256)},
    **{f"float16 × {width}": Case(dtype=FP16, width=width, queries=4, keys=4096) for width in (40, 128, 256)},
    "grouped × 128": Case(width=128, queries=1, keys=4096, heads=8, softcap=3.0, lengths=True),
    "rows": Case(Window(64) | Tokens([0, 500]) | Tokens([0, 500]).T, queries=4, keys=4096),
}


def named(backend: str, quick: dict[str, Case], others: dict[str, Case]) -> list[object]:
    marked = {False: quick, True: others}
    return [
        pytest.param(backend, case, id=f"{backend}: {name}", marks=[pytest.mark.slow] * slow)
        for slow, cases in marked.items() for name, case in cases.items()
    ]  # fmt: skip


CASES = [
    *named("hopper", HOPPER, HOPPER_SLOW),
    *named("triton", TRITON, TRITON_SLOW),
    *named("decode", DECODE, DECODE_SLOW),
]


@pytest.mark.parametrize(("backend", "case"), CASES)
def test_it_compiles_and_fits(backend: str, case: Case) -> None:
    (chosen,) = (each for each in BACKENDS if each.name == backend)
    kernels = compiled(chosen, case)
    assert kernels
    faults = [fault for kernel in kernels for fault in kernel.faults]
    assert not faults, "; ".join(faults)


@pytest.mark.parametrize("registers", [16, None])
def test_spills_are_seen(registers: int | None) -> None:
    """With too few registers a kernel spills, and without a limit it does not."""
    language = triton.language

    @triton.jit
    def normalize(x, width: language.constexpr):
        at = x + language.arange(0, width)
        values = language.load(at)
        language.store(at, values / language.sum(values, 0))

    with sm90.hopper() as kernels:
        normalize[(1,)](torch.zeros(2048), 2048, num_warps=1, maxnreg=registers)
    assert bool(kernels[0].stack) == (registers is not None)
