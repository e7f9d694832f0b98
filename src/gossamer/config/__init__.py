"""Configurations as values that import no torch."""

from ..nn.config import SparseAttentionConfig, compute_dynamic_window_size, get_recommended_config
from ..models.config import GPT2Config

__all__ = ["GPT2Config", "SparseAttentionConfig", "compute_dynamic_window_size", "get_recommended_config"]
