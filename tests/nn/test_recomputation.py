"""With attention kept, its operators run once a layer, and no bit of the loss or of a gradient is another."""

from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer import attend
from gossamer.config import GPT2Config, IndexerConfig
from gossamer.kernels import TILED
from gossamer.models.gpt2 import GPT2
from gossamer.nn import keeping_attention
from gossamer.nn.recomputation import recomputed
from gossamer.patterns import Causal, Window

LAYERS = 2
MODELS = {
    "gossamer::attend": {"use_sparse_attention": True},
    "gossamer::attend_indexed": {"indexer": IndexerConfig(2, 8, index_topk=4, qk_rope_head_dim=4)},
    "aten::_scaled_dot_product_flash_attention_for_cpu": {"dropout": 0.0},
}


class Counting(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.runs[func.name()] += 1
        return func(*args, **(kwargs or {}))


def step(settings: dict[str, Any], keeping: Any) -> tuple[Tensor, dict[str, Tensor], Counter[str]]:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "context_size": 32, "n_layer": LAYERS, "n_head": 2, "n_embed": 16}
    model = GPT2(GPT2Config(**shape, **({"dropout": 0.2} | settings)))
    model.checkpointing = keeping
    tokens = torch.randint(64, (2, 32))
    with Counting() as counting:
        loss = model(tokens, tokens).loss
        loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, counting.runs


@pytest.mark.parametrize("operator", MODELS)
def test_attention_runs_once_a_layer_and_no_bit_changes(operator: str) -> None:
    loss, gradients, _ = step(MODELS[operator], False)
    for keeping, runs in ((True, 2 * LAYERS), (keeping_attention, LAYERS)):
        again, others, counted = step(MODELS[operator], keeping)
        assert counted[operator] == runs
        assert torch.equal(again, loss)
        assert others.keys() == gradients.keys()
        assert all(torch.equal(others[name], gradients[name]) for name in gradients)


def test_attention_runs_once_too_where_a_plain_call_went_before() -> None:
    """Calls like an earlier one take a shorter way, which nobody could see."""
    runs = 0
    torch.manual_seed(0)
    q = torch.randn(1, 2, 32, 8, requires_grad=True)

    def layer(q: Tensor) -> Tensor:
        return attend(q + 1.0, q + 2.0, q + 3.0, Causal() & Window(4))

    real = type(TILED).forward

    def forward(*inputs: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        nonlocal runs
        runs += 1
        return real(*inputs, **settings)

    layer(q).sum().backward()
    with mock.patch.object(type(TILED), "forward", forward):
        recomputed(layer, keeping_attention)(q).sum().backward()
    assert runs == 1


def test_chosen_keys_are_chosen_once() -> None:
    assert step(MODELS["gossamer::attend_indexed"], keeping_attention)[2]["gossamer::top_keys"] == LAYERS
