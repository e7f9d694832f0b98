"""A model of transformers from a local folder, sparse before anybody runs it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...patterns import Pattern
from .switch import resparsify, sparsify


def load_sparse(folder: Path, pattern: Pattern | None, *, device: torch.device, dtype: str = "auto") -> PreTrainedModel:
    """The decoder that the folder holds, in evaluation mode, sparse by `pattern` or as its configuration says.

    Raises:
        ValueError: There is no pattern and the configuration has none, or the model cannot be switched.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
    return resparsify(model) if pattern is None else sparsify(model, pattern)
