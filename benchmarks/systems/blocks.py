"""Attention over a random choice of blocks, another for each head: by everyone who can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gossamer.attention import attend
from gossamer.bench import peers
from gossamer.bench.case import Case, Contender, Step
from gossamer.bench.gate import AttentionFunction, Named, plain_attention
from gossamer.bench.setting import Setting
from gossamer.block_sparse import attend_blocks
from gossamer.patterns import Blocks, PerHead

BLOCK = 128
SHARE = 0.1
"""Of all blocks, those that are seen."""
ERROR = 1.5
"""Allowed error in the mean square, in units of that of dense attention with a mask in the same dtype."""

GRADIENTS = ("dq", "dk", "dv")

Make = Callable[[Tensor], AttentionFunction]


def layout_of(setting: Setting, length: int) -> Tensor:
    """bool [1, H, rows, columns]: in every row of blocks of every head as many seen, drawn at random."""
    rows = length // BLOCK
    seen = max(1, round(SHARE * rows))
    generator = torch.Generator().manual_seed(setting.config.seed)
    rank = torch.rand(1, setting.config.heads, rows, rows, generator=generator).argsort(-1).argsort(-1)
    return (rank < seen).to(setting.device)


def ours(layout: Tensor) -> AttentionFunction:
    """`attend` with the blocks as a pattern: its tables are made at the first call."""
    return partial(attend, pattern=PerHead([(Blocks(BLOCK, own), 1) for own in layout[0].cpu().numpy()]))


def ours_at_run_time(layout: Tensor) -> AttentionFunction:
    """`attend_blocks`, which makes its tables at each call, as for a layout that changes."""
    return partial(attend_blocks, layout=layout, block=BLOCK)


def flex(layout: Tensor) -> AttentionFunction:
    """FlexAttention over the same blocks, whole ones, so that it evaluates no mask; its own lists are made before."""
    from torch.nn.attention.flex_attention import BlockMask

    counts, lists = listed(layout)
    nothing = torch.zeros_like(counts)
    return peers.flex_attention(BlockMask.from_kv_blocks(nothing, lists, counts, lists, BLOCK_SIZE=BLOCK))


def fa4(layout: Tensor) -> AttentionFunction:
    """FlashAttention-4's block-sparse path over the same blocks; its lists for both passes are made before.

    Its backward adds up gradients of queries in whatever order they come: with blocks it has no other on Hopper.
    """
    attention = import_module("flash_attn.cute").flash_attn_func
    tensors = import_module("flash_attn.cute.block_sparsity").BlockSparseTensorsTorch

    def told(layout: Tensor) -> object:
        counts, lists = listed(layout)
        nothing = torch.zeros_like(counts)
        return tensors(nothing, lists, counts, lists, block_size=(BLOCK, BLOCK))

    forward, backward = told(layout), told(layout.mT)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        found = attention(q, k, v, block_sparse_tensors=forward, block_sparse_tensors_bwd=backward)
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    return run


def cudnn(layout: Tensor) -> AttentionFunction:
    """Dense attention by cuDNN: every block."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(q, k, v)

    return run


def listed(layout: Tensor) -> tuple[Tensor, Tensor]:
    """(how many blocks each row sees, which ones first), as both peers take them."""
    counts = layout.sum(-1).to(torch.int32)
    return counts, (~layout).to(torch.int8).contiguous().argsort(dim=-1, stable=True).to(torch.int32)


CONTENDERS: dict[str, Make] = {
    "cudnn": cudnn,
    "flex": flex,
    "fa4": fa4,
    "gossamer": ours,
    "gossamer, layout at run time": ours_at_run_time,
}


def block_cases(setting: Setting) -> tuple[Case, ...]:
    """Forward, and forward with backward."""
    device, dtype = setting.device, setting.dtype
    only_gpu = peers.only_cuda_half(device, dtype)
    missing = {"cudnn": only_gpu, "flex": only_gpu, "fa4": peers.flash_attention_4_missing(device, dtype)}
    judge = cache(partial(Judge, setting))

    def contender(name: str, gradients: bool) -> Contender:
        return Contender(
            name,
            prepare=lambda n: step_of(setting, CONTENDERS[name], n, gradients),
            fault=lambda: None,
            missing=missing.get(name),
            fault_at=lambda n, step: None if name == "cudnn" else judge(n).fault(step()),
        )

    titles = (("blocks forward", False), ("blocks forward + backward", True))
    return tuple(
        Case(title, setting.config.lengths, tuple(contender(name, gradients) for name in CONTENDERS))
        for title, gradients in titles
    )


def step_of(setting: Setting, make: Make, length: int, gradients: bool) -> Step:
    """One call, which returns the output or the gradients by name."""
    problem, attention = setting.draw(length), make(layout_of(setting, length))
    if gradients:
        return gradient_step(attention, problem)
    return lambda: {"output": attention(*problem[:3])}


def gradient_step(attention: AttentionFunction, problem: Sequence[Tensor]) -> Callable[[], Named]:
    """Forward and backward."""
    *inputs, grad_out = problem
    leaves = [x.detach().requires_grad_() for x in inputs]

    def step() -> Named:
        return dict(zip(GRADIENTS, torch.autograd.grad(attention(*leaves), leaves, grad_out), strict=True))

    return step


class Judge:
    """Knows what the last head of the first sequence is to give: dense attention with a mask, in float32."""

    def __init__(self, setting: Setting, length: int):
        problem = [x[:1, -1:] for x in setting.draw(length)]
        mask = layout_of(setting, length)[:, -1:].repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
        dense = partial(plain_attention, mask=mask)
        self.exact = self._results(dense, [x.float() for x in problem])
        usual = self._results(dense, problem)
        self.usual = {name: error(x, self.exact[name]) for name, x in usual.items()}

    def fault(self, found: Named) -> str | None:
        """What is further off than dense attention with a mask is, or None."""
        for name, x in found.items():
            off = error(x[:1, -1:], self.exact[name])
            if not off <= ERROR * self.usual[name]:
                return f"{name} is {off:.2e} off, dense attention with a mask is {self.usual[name]:.2e}"
        return None

    @staticmethod
    def _results(attention: AttentionFunction, problem: Sequence[Tensor]) -> Named:
        with torch.no_grad():
            output = attention(*problem[:3])
        return {"output": output} | dict(gradient_step(attention, problem)())


def error(found: Tensor, exact: Tensor) -> float:
    """Of the length of the whole."""
    return ((found.float() - exact).norm() / exact.norm()).item()
