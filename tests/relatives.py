"""A small one of each relative of indexed attention, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from gossamer.config import CSA, HCA, WINDOW_ONLY, IndexerConfig
from gossamer.nn import (
    BlockIndexedAttention,
    CompressedAttention,
    HySparseAttention,
    HySparseFullAttention,
    MoBAAttention,
    NSAAttention,
    SinkAttention,
    StreamingAttention,
)
from gossamer.selectors import NSA, BlockTopK

SMALL = {
    **{"hidden_size": 32, "num_attention_heads": 4, "head_dim": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8},
    **{"o_groups": 2, "o_lora_rank": 8, "sliding_window": 8},
}
INDEXER = IndexerConfig(index_n_heads=2, index_head_dim=16, index_topk=3, qk_rope_head_dim=8)


class HySparse(nn.Module):
    """A full layer, and a sparse one on what it lends."""

    def __init__(self) -> None:
        super().__init__()
        self.full = HySparseFullAttention(32, 4, 2, BlockTopK(8, 2))
        self.sparse = HySparseAttention(32, 4, 2, window=8)

    def forward(self, x: Tensor) -> Tensor:
        out, shared = self.full(x)
        return self.sparse(x + out, shared)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "MoBA": lambda: MoBAAttention(32, 4, 2, block=8),
    "NSA": lambda: NSAAttention(32, 4, 2, NSA(length=8, stride=4, block=8, count=3, first=1, local=1, window=8)),
    "MSA": lambda: BlockIndexedAttention(32, 4, 2, head_width=16, index_width=16, choice=BlockTopK(8, 2)),
    "CSA": lambda: CompressedAttention(replace(CSA, **SMALL, indexer=INDEXER)),
    "HCA": lambda: CompressedAttention(replace(HCA, **SMALL, compress_rate=8)),
    "window": lambda: CompressedAttention(replace(WINDOW_ONLY, **SMALL)),
    "HySparse": HySparse,
    "streaming": lambda: StreamingAttention(32, 4, 2, window=8),
    "sinks": lambda: SinkAttention(32, 4, 2, head_width=16),
}


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and the gradients of the input and of every parameter that gets one."""
    x = x.clone().requires_grad_()
    out = module(x)
    leaves = [x, *module.parameters()]
    found = torch.autograd.grad(out.float().square().sum(), leaves, allow_unused=True)
    return [out.detach(), *(grad for grad in found if grad is not None)]
