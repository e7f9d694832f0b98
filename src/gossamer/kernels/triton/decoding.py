"""Which problems the decoding kernel takes: a few new queries of each sequence against its cache."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from ...plan import Plan
from ..problem import Problem, Saved, Softmax, Unsupported
from . import decode_table
from .backend import on, without_gpu


class Decode:
    """Runs few queries against many keys, forward alone, with lengths that the device alone knows."""

    name = "decode"

    def refuses(self, problem: Problem) -> str | None:
        """The first thing that decoding does not do."""
        if find_spec("triton") is None:
            return "it needs Triton; pip install triton"
        return without_gpu(problem.device) or decode_table.refuses(problem)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor]:
        """(out, natural log-sum-exp), as `Backend` says."""
        from .decode import decode

        with on(q.device):
            return decode(q, k, v, sinks, plan, softmax)

    def backward(
        self, saved: Saved, grad_out: Tensor, grad_lse: Tensor | None, plan: Plan, softmax: Softmax
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Never picked: `refuses` says so of every backward."""
        raise Unsupported("decoding has no gradients")


DECODE = Decode()
