"""Other libraries' conventions, checked pair by pair where we translate them."""

import pytest
import torch

from gossamer.bench import peers
from gossamer.bench.gate import Trial, fault
from gossamer.patterns import Causal, Window

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
    assert fault(peers.flex_attention(545, 256, trial.device), Causal() & Window(256), trial) is None
    assert fault(peers.cudnn_attention, Causal(), trial) is None
