"""Packed documents on a GPU: each as if alone, and no bit of another's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gossamer import GPT2, GPT2Config
from gossamer.config import SparseAttentionConfig
from gossamer.nn.packing import Packing

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
CONTEXT = 700
LENGTHS = (1, 129, 700, 63, 256, 2, 400)
MODELS = {
    "design": {
        "use_sparse_attention": True,
        "sparse_config": SparseAttentionConfig(2, 1, window_size=100, min_window_size=16),
    },
    "dense": {"use_sparse_attention": False},
    "windows": {
        "use_sparse_attention": False,
        "windows": (64, 200),
        "dilations": (1, 3),
        "dilated_heads": 1,
        "positions": "rotary",
    },
}


def made(kind: str, dtype: torch.dtype, device: str) -> GPT2:
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "context_size": CONTEXT, "n_layer": 2, "n_head": 3, "n_embed": 192, "dropout": 0.0}
    return GPT2(GPT2Config(**{**shape, **MODELS[kind]})).to(device, dtype)


def row() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(512, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[0, np.cumsum(LENGTHS) - 1] = -1
    return tokens, targets


def gradients(kind: str, dtype: torch.dtype, device: str, *, packed: bool) -> torch.Tensor:
    """All of a model's, in float64, of the summed loss of all documents: in one row, or of each alone."""
    model, (tokens, targets) = made(kind, dtype, device), (part.to(device) for part in row())
    parts = [(tokens, targets, Packing(LENGTHS, capacity=CONTEXT))]
    if not packed:
        parts = [(*pair, None) for pair in zip(tokens.split(LENGTHS, 1), targets.split(LENGTHS, 1), strict=True)]
    whole = (targets >= 0).sum()
    for some, wanted, around in parts:
        loss = model(some, wanted, cache=around, planned_length=CONTEXT).loss
        (loss * (wanted >= 0).sum() / whole).backward()
    return torch.cat([parameter.grad.double().cpu().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_as_exact_as_those_of_each_document_alone(kind: str, dtype: torch.dtype) -> None:
    exact = gradients(kind, torch.float64, "cpu", packed=False)
    packed, alone = (gradients(kind, dtype, DEVICE, packed=packed) for packed in (True, False))
    rounding = torch.finfo(dtype).eps * exact.norm()
    assert (packed - exact).norm() <= 2 * (alone - exact).norm() + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_another_document_changes_no_bit(kind: str, dtype: torch.dtype) -> None:
    model, tokens = made(kind, dtype, DEVICE), row()[0].to(DEVICE)
    with torch.no_grad():
        before = model(tokens, cache=Packing(LENGTHS)).logits[0].split(LENGTHS)
        ends = np.cumsum(LENGTHS).tolist()
        for changed, (end, length) in enumerate(zip(ends, LENGTHS, strict=True)):
            other = tokens.clone()
            other[0, end - length : end] = (other[0, end - length : end] + 7) % 512
            after = model(other, cache=Packing(LENGTHS)).logits[0].split(LENGTHS)
            same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
            assert same == [number != changed for number in range(len(LENGTHS))]
