"""Other libraries' conventions, checked pair by pair where we translate them."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gossamer.bench import peers
from gossamer.bench.gate import Trial, fault
from gossamer.config import SparseAttentionConfig
from gossamer.patterns import Causal, Sinks, Tokens, Window

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [96, 97])
@pytest.mark.skipif(peers.local_attention_missing() is not None, reason="local-attention is not installed")
def test_the_exact_window_of_local_attention_is_one_key_wider_than_its_name(length):
    trial = Trial(length, heads=2, width=16, dtype=torch.float32, device=CPU)
    assert fault(peers.local_attention(32), Causal() & Window(33), trial) is None
    assert fault(peers.local_attention(32), Causal() & Window(32), trial) is not None


def test_an_absent_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda package: None)
    assert peers.local_attention_missing() == "not installed: pip install 'gossamer[peers]'"


def test_gpu_peers_say_why_they_stay_out():
    cuda = torch.device("cuda")
    assert peers.only_cuda_half(CPU, torch.bfloat16) == "runs on CUDA only"
    assert "half precision only, not torch.float32" in peers.only_cuda_half(cuda, torch.float32)
    assert peers.only_cuda_half(cuda, torch.bfloat16) is None


@pytest.mark.gpu
def test_flex_attention_and_cudnn_compute_what_they_are_measured_as():
    trial = Trial(545, heads=2, width=64, dtype=torch.bfloat16, device=torch.device("cuda"))
    mask = peers.flex_mask(peers.flex_window(256), 545, None, trial.device)
    assert fault(peers.flex_attention(mask), Causal() & Window(256), trial) is None
    assert fault(peers.cudnn_attention, Causal(), trial) is None
    assert fault(peers.flash_attention, Causal(), trial) is None


def as_dense(mask: peers.FlexMask, heads: int, length: int) -> torch.Tensor:
    """What a mask of FlexAttention allows, [H, N, N]."""
    head, query, key = torch.meshgrid(torch.arange(heads), torch.arange(length), torch.arange(length), indexing="ij")
    return mask(torch.zeros_like(head), head, query, key)


N = 200


@pytest.mark.parametrize(
    ("mask", "pattern"),
    [
        (peers.flex_window(32), Causal() & Window(32)),
        (peers.flex_document(2, 64, 10), SparseAttentionConfig(2, 1, 64, adaptive_window=False).pattern(N)),
        (
            peers.flex_window_and_tokens(32, 4, 7, 15),
            Causal() & (Window(32) | Sinks(4) | Tokens(tuple(range(7, N, 15)))),
        ),
    ],
    ids=["window", "document", "window+tokens"],
)
def test_the_masks_given_to_flex_attention_are_our_patterns(mask, pattern):
    found = as_dense(mask, 3, N)
    assert torch.equal(found, torch.from_numpy(pattern.dense_mask(N)).expand_as(found))


def test_flash_attention_4_is_asked_for_the_window_in_its_own_layout(monkeypatch):
    def flash_attn_func(q, k, v, *, causal, window_size):
        assert causal and window_size[1] == 0
        n = q.shape[1]
        distance = torch.arange(n)[:, None] - torch.arange(n)
        mask = (distance >= 0) & (distance <= window_size[0])
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2), None

    module = ModuleType("flash_attn.cute")
    module.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", module)
    trial = Trial(97, heads=4, width=16, dtype=torch.float32, device=CPU, key_heads=2)
    assert fault(peers.flash_attention_4(32), Causal() & Window(32), trial) is None


def test_flash_attention_4_says_why_it_stays_out(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda package: None)
    assert peers.flash_attention_4_missing(CPU, torch.bfloat16) == "runs on CUDA only"
    absent = peers.flash_attention_4_missing(torch.device("cuda"), torch.bfloat16)
    assert absent == "not installed: pip install --pre flash-attn-4"
