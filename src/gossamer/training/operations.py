"""How many operations a step needs, counted operator by operator on tensors that hold no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..config import GPT2Config
from ..models.gpt2 import GPT2
from ..patterns import Packed
from ..plan import plan
from .config import Stage
from .stages import enter_stage

aten = torch.ops.aten


class Operations(NamedTuple):
    """Additions and multiplications, of attention's operators and of all."""

    total: int
    attention: int

    @property
    def attention_share(self) -> float:
        """Of all operations, those between queries, keys and values; projections are not among them."""
        return self.attention / self.total


@lru_cache(maxsize=64)
def operations(config: GPT2Config, *, length: int, stage: Stage | None = None) -> Operations:
    """What forward and backward of one sequence need, with the attention that its plan says and no more.

    Matrix products and attention count, a multiplication and an addition each as one. A window counts the pairs in it,
    dense attention those that causality leaves. The backward of attention counts five products where its forward has
    two, because it makes the scores again, as every kernel that keeps no scores does; activations that
    `activation_checkpointing` makes again do not count.

    Args:
        length: Tokens in the sequence.
        stage: Of a model with indexers: what it attends to, and which weights learn.

    >>> dense = GPT2Config(vocab_size=256, context_size=1024, n_layer=2, n_head=2, n_embed=32)
    >>> [round(operations(dense, length=n).attention_share, 2) for n in (64, 1024)]
    [0.13, 0.7]
    """
    with FakeTensorMode():
        model = GPT2(replace(config, dropout=0.0))  # which would leave the fused operators, and count hidden pairs
        enter_stage(model, stage)
        tokens = torch.zeros(1, length, dtype=torch.int64)
        with FlopCounterMode(display=False, custom_mapping=_CAUSAL) as counter:
            _loss(model, tokens, learns=stage in ("warm_up", "sparse")).backward()
    counts = counter.get_flop_counts()["Global"]
    return Operations(sum(counts.values()), sum(count for name, count in counts.items() if _is_attention(name)))


def packed_attention(model: GPT2, documents: Sequence[int], capacity: int) -> int:
    """What attention of a row needs, forward and backward, in which documents of these lengths lie behind each other.

    Args:
        capacity: Tokens that a document may have, from which an adaptive window is resolved.
    """
    heads, row = model.config.n_head, sum(documents)
    patterns = [Packed(block.attn.pattern(capacity), documents) for block in model.h]  # type: ignore[missing-attribute]
    pairs = sum(plan(pattern, row, row, heads).pairs for pattern in patterns)
    shape = torch.Size([1, 1, 1, model.config.head_width])
    return pairs * (_dense(shape, shape, shape) + _dense_backward(None, shape, shape, shape, None, None))


def _loss(model: GPT2, tokens: Tensor, *, learns: bool) -> Tensor:
    found = model(tokens, tokens, indexer_losses=learns)
    return found.loss + found.indexer_losses.sum() if learns else found.loss


def _is_attention(operator: Any) -> bool:
    return str(operator).startswith("gossamer.") or operator in _CAUSAL


def _dense(q, k, v, *settings, out_shape=None, **named) -> int:
    return 2 * _pairs(q, k, *settings, **named) * (q[3] + v[3])


def _dense_backward(grad, q, k, v, out, lse, *settings, out_shape=None, **named) -> int:
    return 2 * _pairs(q, k, *settings, **named) * (3 * q[3] + 2 * v[3])


def _pairs(q: torch.Size, k: torch.Size, dropout_p: float = 0.0, is_causal: bool = False, **_: Any) -> int:
    """Visible pairs of PyTorch's own attention, whose formulas count hidden ones too."""
    return q[0] * q[1] * (q[2] * (q[2] + 1) // 2 if is_causal else q[2] * k[2])


_CAUSAL = {
    aten._scaled_dot_product_flash_attention_for_cpu: _dense,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _dense_backward,
}
"""The operators that `scaled_dot_product_attention` becomes on a CPU, where the count is made whatever the device."""
