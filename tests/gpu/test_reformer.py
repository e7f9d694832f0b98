"""A Reformer on a GPU: gradients are those of stored activations, and memory does not grow with the depth."""

from __future__ import annotations

import pytest
import torch

from gossamer.config import ReformerConfig
from gossamer.measure import peak_memory
from gossamer.models.reformer import Reformer

pytestmark = pytest.mark.gpu

LENGTH = 1024


def model(layers: int = 4, dropout: float = 0.1) -> Reformer:
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=100,
        hidden_size=64,
        attn_layers=("local", "lsh") * (layers // 2),
        num_attention_heads=2,
        attention_head_size=32,
        feed_forward_size=256,
        axial_pos_shape=(32, 32),
        axial_pos_embds_dim=(16, 48),
        max_position_embeddings=LENGTH,
        num_hashes=2,
        is_decoder=True,
        hidden_dropout_prob=dropout,
        local_attention_probs_dropout_prob=dropout,
        chunk_size_feed_forward=256,
    )
    return Reformer(config, head="lm")


def text(batch: int = 2) -> torch.Tensor:
    return torch.randint(100, (batch, LENGTH + 1), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
def test_reversible_gradients_are_those_of_stored_activations(precision: torch.dtype, tolerance: float) -> None:
    reformer, words = model().cuda(), text().cuda()
    found = []
    for reformer.blocks.stored in (False, True):
        reformer.zero_grad()
        torch.manual_seed(2)
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            loss = reformer(words[:, :-1], words[:, 1:]).loss
        loss.backward()
        found.append([parameter.grad.clone() for parameter in reformer.parameters()])
    for reversible, stored in zip(*found, strict=True):
        assert (reversible - stored).norm() <= tolerance * stored.norm()


def test_features_are_the_cpu_s() -> None:
    reformer, words = model(dropout=0.0).eval(), text()[:, :-1]
    with torch.no_grad():
        wanted = reformer(words)
        buckets = [None if own is None else own.cuda() for own in wanted.buckets]
        found = reformer.cuda()(words.cuda(), buckets=buckets)
    torch.testing.assert_close(found.features.cpu(), wanted.features, rtol=0, atol=1e-4)


def test_memory_for_activations_does_not_grow_with_the_depth() -> None:
    words, peaks = text(8).cuda(), {}
    for layers in (2, 4, 8, 16):
        reformer = model(layers).cuda()
        for _ in range(2):  # the first step makes the gradients and the kernels' tables
            reformer.zero_grad(set_to_none=False)
            with peak_memory("cuda") as peak:
                reformer(words[:, :-1], words[:, 1:]).loss.backward()
        peaks[layers] = peak.bytes
    buckets = 8 * 2 * 2 * LENGTH * 8  # of a layer that hashes, int64
    assert peaks[16] <= 1.02 * peaks[2] + 7 * buckets, peaks
