"""Who may see whom: frozen values over positions, without length, device or kernel."""

from . import presets
from .base import Pattern
from .block_window import BlockWindow
from .blocks import Blocks
from .causal import Causal
from .clauses import Extent
from .dilated import Dilated
from .documents import Documents
from .excerpt import Excerpt
from .global_blocks import GlobalBlocks
from .packed import Packed
from .parse import parse
from .per_head import PerHead
from .random_blocks import RandomBlocks
from .section import Section
from .sinks import Sinks
from .strided import Strided
from .tokens import Tokens
from .window import Window

__all__ = [
    "BlockWindow",
    "Blocks",
    "Causal",
    "Dilated",
    "Documents",
    "Excerpt",
    "Extent",
    "GlobalBlocks",
    "Packed",
    "Pattern",
    "PerHead",
    "RandomBlocks",
    "Section",
    "Sinks",
    "Strided",
    "Tokens",
    "Window",
    "parse",
    "presets",
]
