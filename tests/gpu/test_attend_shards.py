"""Attention over shards on two GPUs, through NCCL and the GPU's own kernels."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from gossamer import attend
from gossamer.parallel import Shards, attend_by_heads, attend_shards
from gossamer.patterns import Causal, Dilated, Packed, Pattern, PerHead, Sinks, Strided, Tokens, Window, presets
from tests.distributed.launch import on_gpus, run_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not on_gpus(2), reason="needs two CUDA devices")]

LENGTH = 777
PATTERNS: dict[str, Pattern] = {
    "window": Causal() & Window(100),
    "window of several shards": Causal() & Window(600),
    "strided and sinks": Causal() & (Window(30) | Strided(9) | Sinks(4)),
    "dilated": Causal() & Dilated(20, step=3),
    "longformer": presets.longformer(64, (0, 5, 600)),
    "causal rows": Causal() & (Window(30) | Tokens([300, 700]).T),
    "packed": Packed(Causal() & (Window(30) | Strided(5)), [200, 300, 277]),
    "blocks": presets.bigbird(64),
    "a pattern a head": PerHead([(Causal() & Window(64), 4), (Causal() & Strided(10), 2)]),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _errors(name: str) -> dict[str, tuple[float, float]]:
    """(error over shards, error in one process) of the worst of output and gradients, of each dtype and exchange."""
    pattern, found = PATTERNS[name], {}
    shards = Shards.of([500, 277])
    own = slice(shards.first, shards.stop)
    for dtype in DTYPES:
        torch.manual_seed(0)
        q, k, v, grad_out = (torch.randn(2, 6, LENGTH, 64, dtype=dtype, device="cuda") for _ in range(4))
        exact = _run(lambda *x: attend(*x, pattern, backend="tiled"), (q, k, v), grad_out, torch.float64)
        alone = _run(lambda *x: attend(*x, pattern), (q, k, v), grad_out, dtype)
        mine = tuple(x[:, :, own] for x in (q, k, v))
        for over in (attend_shards, attend_by_heads):
            shared = _run(lambda *x, over=over: over(*x, pattern, shards), mine, grad_out[:, :, own], dtype)
            pairs = zip(shared, alone, exact, strict=True)
            errors = [(_error(a, c[:, :, own]), _error(b[:, :, own], c[:, :, own])) for a, b, c in pairs]
            found[f"{dtype}, {over.__name__}"] = max(errors, key=lambda pair: pair[0] / pair[1])
    return found


def _run(over, inputs, grad_out, dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out = over(*inputs)
    out.backward(grad_out.to(dtype))
    return [out.detach(), *(x.grad for x in inputs)]


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("name", PATTERNS)
def test_it_is_as_exact_as_in_one_process(name: str) -> None:
    for errors in run_ranks(_errors, 2, name, seconds=300.0):
        assert len(errors) == 2 * len(DTYPES)
        assert all(shared <= 1.5 * alone for shared, alone in errors.values()), errors


def _repeated() -> bool:
    torch.manual_seed(dist.get_rank())
    shards = Shards.even(4096)
    inputs = [torch.randn(1, 6, 2048, 64, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
    grad_out = torch.randn_like(inputs[0])
    pattern = Causal() & (Window(100) | Strided(9))
    first, *others = (
        _run(lambda *x: attend_shards(*x, pattern, shards), inputs, grad_out, torch.bfloat16) for _ in range(20)
    )
    return all(torch.equal(a, b) for run in others for a, b in zip(run, first, strict=True))


def test_it_repeats_to_the_bit() -> None:
    assert run_ranks(_repeated, 2, seconds=300.0) == [True, True]
