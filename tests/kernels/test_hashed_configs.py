"""Every kernel of hashed attention compiles for Hopper, within its registers and its shared memory."""

from __future__ import annotations

import pytest
import torch

from gossamer.kernels.hashed import Forwarded, Scores
from gossamer.kernels.triton.hashed import TRITON_HASHED
from gossamer.selectors import LSH, sorted_rounds

triton = pytest.importorskip("triton", reason="the kernels need Triton to compile")

from tests.kernels import sm90  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process and compiles nothing", allow_module_level=True)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES = {
    "trax": (LSH.trax(2, 64), BF16, 64),
    "trax, 128 wide": (LSH.trax(2, 128), BF16, 128),
    "trax, 256 wide": (LSH.trax(2, 64), BF16, 256),
    "paper": (LSH.paper(3, 64), BF16, 64),
    "paper, 128 wide": (LSH.paper(2, 128), FP16, 128),
    "both ways, wrapping": (LSH(2, 64, causal=False, other_buckets=True, repeats=True, edge="wraps"), FP16, 64),
    "float32": (LSH.paper(2, 64), FP32, 64),
    "float32, 128 wide": (LSH.trax(2, 64), FP32, 128),
    "float32, 256 wide": (LSH.trax(2, 64), FP32, 256),
}


def compiled(lsh: LSH, dtype: torch.dtype, width: int) -> list[sm90.Compiled]:
    """What a padded call launches, forward and backward, with a gradient of the log-sum-exp."""
    x, within = torch.zeros(1, 1, 300, width, dtype=dtype), torch.tensor([[0, 290]], dtype=torch.int32)
    spans = {"own_bucket": not lsh.other_buckets, "once": not lsh.repeats}
    buckets = torch.zeros(1, 1, lsh.rounds, 300, dtype=torch.int64)
    rounds, scores = sorted_rounds(buckets, lsh.chunks, within=within, **spans), Scores(lsh.chunks, 1.0, lsh.epsilon)
    with sm90.hopper() as kernels:
        out, lse = TRITON_HASHED.forward(x, x, rounds, scores)
        TRITON_HASHED.backward(Forwarded(x, x, out, lse), x, lse, rounds, scores)
    return kernels


@pytest.mark.parametrize(
    "name", [n if n in ("trax", "paper") else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_the_kernels_fit_hopper(name: str) -> None:
    kernels = compiled(*CASES[name])
    assert {kernel.name for kernel in kernels} == {"forward", "backward_queries", "backward_keys", "_units"}
    assert [fault for kernel in kernels for fault in kernel.faults] == []
