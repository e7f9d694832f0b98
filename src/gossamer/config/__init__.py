"""The shapes of attention and of models, as values that import no torch."""

from .bigbird import BigBirdConfig
from .compressed import CSA, HCA, WINDOW_ONLY, CompressedConfig
from .encoder import EncoderConfig
from .gpt2 import GPT2Config
from .indexer import IndexerConfig
from .latent import LatentConfig
from .longformer import LongformerConfig
from .longformer_lm import longformer_lm
from .reformer import ReformerConfig
from .rotary import RotaryConfig, YarnConfig
from .sparse import SparseAttentionConfig, compute_dynamic_window_size, get_recommended_config

__all__ = [
    "CSA",
    "HCA",
    "WINDOW_ONLY",
    "BigBirdConfig",
    "CompressedConfig",
    "EncoderConfig",
    "GPT2Config",
    "IndexerConfig",
    "LatentConfig",
    "LongformerConfig",
    "ReformerConfig",
    "RotaryConfig",
    "SparseAttentionConfig",
    "YarnConfig",
    "compute_dynamic_window_size",
    "get_recommended_config",
    "longformer_lm",
]
