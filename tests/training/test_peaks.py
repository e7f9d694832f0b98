"""A device is known by its own name and by no other's, and a CPU is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gossamer.training.peaks import peak, peak_of


@pytest.fixture(autouse=True)
def usual_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_device_is_known_by_its_own_name(name: str, tera: float) -> None:
    assert peak(name, "bf16") == peak(name, "fp16") == pytest.approx(tera * 1e12)


def test_fp32_is_as_fast_as_pytorch_may_make_it() -> None:
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert peak("NVIDIA H200", "fp32") == pytest.approx(66.9e12)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert peak("NVIDIA H200", "fp32") == pytest.approx(494.7e12)


def test_an_unknown_device_and_a_cpu_have_none() -> None:
    assert peak("Tesla K80", "fp32") is None
    assert peak_of(torch.device("cpu"), "fp32") is None


@pytest.mark.gpu
def test_a_gpu_is_asked_for_its_name() -> None:
    device = torch.device("cuda")
    assert peak_of(device, "bf16") == peak(torch.cuda.get_device_name(device), "bf16")
