"""What a case was, in words: its pattern, its size, and where it ran."""

from .config import EVERY, SINKS, TITLES, TOKENS, BenchConfig
from .results import Results

WINDOW, DOCUMENT = "window {window}", "the document's pattern"
WINDOW_AND_TOKENS = f"{WINDOW} + {SINKS} sinks + {TOKENS} tokens"
PATTERNS = {
    "window": WINDOW,
    "local-attention": WINDOW,
    "flex": WINDOW,
    "fa4": WINDOW,
    "window+tokens": WINDOW_AND_TOKENS,
    "flex-window+tokens": WINDOW_AND_TOKENS,
    "window+strided": f"{WINDOW} + 1 key in {EVERY}",
    "document": DOCUMENT,
    "flex-document": DOCUMENT,
    "gpt2 sparse": DOCUMENT,
}
"""What those see who do not see everything."""


def pattern_words(config: BenchConfig, contender: str) -> str:
    """The pattern of a contender; nothing for one that is dense."""
    return PATTERNS.get(contender, "").format(window=config.window)


def shape_words(config: BenchConfig) -> str:
    """Heads and width; query and key heads, where they differ."""
    heads = f"{config.heads}:{config.key_heads}" if config.key_heads else f"{config.heads}"
    return f"{heads} × {config.head_width}"


def size_words(config: BenchConfig, case: str) -> str:
    """Sequences or, where they make up a number of tokens, that number."""
    if case in (TITLES["forward"], TITLES["training"]) and config.tokens is not None:
        return f"{config.tokens:,} tokens in all"
    return "batch 1" if case == TITLES["launch"] else f"batch {config.batch}"


def setup(results: Results, case: str) -> str:
    """The problem of a case and the machine's share in it, in one line."""
    config = results.config
    seen = dict.fromkeys(pattern_words(config, name) for name in results.contenders(case))
    where = f"CPU threads: {config.threads}" if config.device == "cpu" else config.device
    heads = shape_words(config).replace(" ×", " heads ×")
    return ", ".join([size_words(config, case), heads, *filter(None, seen), config.precision, where])
