"""A benchmark's configuration with everything decided that was left to the machine."""

from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor

from .config import BenchConfig, Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SHARE_OF_FREE_MEMORY = 0.8


@dataclass(frozen=True)
class Setting:
    """A decided configuration in PyTorch's terms."""

    config: BenchConfig

    @property
    def device(self) -> torch.device:
        return torch.device(self.config.device)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.config.precision]

    @property
    def key_heads(self) -> int:
        return self.config.key_heads or self.config.heads

    def batch(self, length: int) -> int:
        """Sequences of this length that one call computes."""
        return max(1, self.config.tokens // length) if self.config.tokens else self.config.batch

    def draw(self, length: int) -> list[Tensor]:
        """Random q, k, v and gradient of the output, [B, H, N, D] each; the same ones whoever asks."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        heads = (self.config.heads, self.key_heads, self.key_heads, self.config.heads)
        shapes = [(self.batch(length), h, length, self.config.head_width) for h in heads]
        return [torch.randn(s, generator=generator, device=self.device, dtype=self.dtype) for s in shapes]


def decide(config: BenchConfig) -> Setting:
    """Choose device, number format, threads and memory limit where the configuration leaves them open.

    Raises:
        ValueError: The device named is not there.
    """
    device = _device(config.device)
    decided = replace(
        config,
        device=device,
        precision=_precision(config.precision, device),
        threads=config.threads or torch.get_num_threads(),
        memory_gib=config.memory_gib or round(SHARE_OF_FREE_MEMORY * _free_bytes(device) / 2**30, 2),
    )
    return Setting(decided)


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"BenchConfig: device is {asked!r}, but PyTorch sees no GPU; give 'cpu' or 'auto'")
    return asked


def _precision(asked: Precision, device: str) -> Precision:
    if asked != "auto":
        return asked
    return "bf16" if device.startswith("cuda") else "fp32"


def _free_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return psutil.virtual_memory().available
