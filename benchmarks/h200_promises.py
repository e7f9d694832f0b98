"""The promises about attention on one H200: each one's limit, and the figure that decides it."""

from collections.abc import Iterator

from gossamer.bench import Measurement, Promise, Results
from gossamer.bench.config import TITLES
from gossamer.bench.headings import pattern_words, shape_words

FORWARD, TRAINING, LAUNCH, DECODE = (TITLES[name] for name in ("forward", "training", "launch", "decode"))

OVER_FA4 = {(64, FORWARD): 1.9, (64, TRAINING): 1.6, (128, FORWARD): 1.45, (128, TRAINING): 1.35}
GROUPS, DOCUMENT, DOCUMENT_LENGTH = 1.4, 10.0, 16384
TOKENS, LONG_MEMORY, LAUNCH_MICROSECONDS = 1.25, 1.3, 25.0
DECODE_BATCH, DECODE_BANDWIDTH, DECODE_KEYS, DECODE_FEWER_KEYS = 64, 0.7, 131072, 32768
DECODE_GROWTH = 1.15
"""Between these two caches the columns grow from two fifths of the keys that are read to three quarters. Their rows
lie 100 apart, and may cost the memory half as much again as a window's, which lie side by side: no more than this."""

Runs = dict[str, list[Results]]


def promises(runs: Runs) -> Iterator[Promise]:
    """Every promise of the sections that ran, with the figure that decides it."""
    for results in runs.get("windows", ()):
        yield from window_promises(results)
    for results in runs.get("groups", ()):
        yield at_least(GROUPS, "every peer that ran", results, TRAINING, "window")
    for results in runs.get("document", ()):
        yield from document_promises(results)
    for results in runs.get("tokens", ()):
        yield from (tokens_promise(results, case) for case in (FORWARD, TRAINING))
    for results in runs.get("long", ()):
        ratio = memory_ratio(results)
        text = f"{title(results, 'window')}: memory in inputs + outputs + gradients, at most {LONG_MEMORY:g}"
        yield Promise(text, ratio, kept=ratio is not None and ratio <= LONG_MEMORY)
    for results in runs.get("launch", ()):
        times = [1e6 * m.seconds for m in results.measurements(LAUNCH, "window")]
        text = f"{LAUNCH}, at most {LAUNCH_MICROSECONDS:g} microseconds"
        yield Promise(text, max(times, default=None), kept=bool(times) and max(times) <= LAUNCH_MICROSECONDS)
    for results in runs.get("decode", ()):
        if results.config.batch == DECODE_BATCH:
            yield from decode_promises(results)


def window_promises(results: Results) -> Iterator[Promise]:
    config = results.config
    for case in (FORWARD, TRAINING):
        limit = OVER_FA4.get((config.head_width, case), 0) if config.window == 256 else 0
        if limit:
            yield at_least(limit, "FlashAttention-4", results, case, "window", over=("fa4",))
        yield at_least(1, "every peer that ran", results, case, "window")


def document_promises(results: Results) -> Iterator[Promise]:
    dense = ("cudnn", "flash")
    for length in results.config.lengths:
        if length == DOCUMENT_LENGTH:
            yield at_least(DOCUMENT, "dense", results, TRAINING, "document", over=dense, length=length)
            rival = ("flex-document",)
            yield at_least(DOCUMENT, "FlexAttention", results, TRAINING, "document", over=rival, length=length)
        for case in (FORWARD, TRAINING):
            yield at_least(1, "dense", results, case, "document", over=dense, length=length)


def at_least(
    limit: float,
    whom: str,
    results: Results,
    case: str,
    contender: str,
    *,
    over: tuple[str, ...] = (),
    length: int | None = None,
) -> Promise:
    """That our contender is so many times as fast as the fastest of `over`, or as every rival that was measured."""
    length = length or results.config.lengths[-1]
    m = results.measurement(case, contender, length)
    rival = m and results.best_rival(m)
    ratio = None if m is None else results.speedup(m, over) if over else rival and rival.seconds / m.seconds
    text = f"{title(results, contender)}, {length:,} tokens, {case}: at least {limit:g}x as fast as {whom}"
    return Promise(text, ratio, kept=ratio is not None and ratio >= limit)


def tokens_promise(results: Results, case: str) -> Promise:
    length = results.config.lengths[-1]
    alone, joint = (results.measurement(case, name, length) for name in ("window", "window+tokens"))
    ratio = joint.seconds / alone.seconds if alone and joint else None
    text = f"{title(results, 'window+tokens')}, {case}: at most {TOKENS:g}x the time of the window alone"
    return Promise(text, ratio, kept=ratio is not None and ratio <= TOKENS)


def memory_ratio(results: Results) -> float | None:
    """Memory at its highest, inputs included, over that of q, k, v, the output and the gradients of all four."""
    config = results.config
    (length,) = config.lengths
    m = results.measurement(TRAINING, "window", length)
    tensor = config.heads * config.head_width * length * (2 if config.precision == "bf16" else 4)
    return (m.peak_bytes + 4 * tensor) / (8 * tensor) if m else None


def decode_promises(results: Results) -> Iterator[Promise]:
    """That it moves what it must at the memory's pace, and that nothing but the columns grows with the cache."""
    fewer, more = (results.measurement(DECODE, "window+strided", n) for n in (DECODE_FEWER_KEYS, DECODE_KEYS))
    what = f"{title(results, 'window+strided')}, {DECODE}, batch {results.config.batch}"
    rate = byte_seconds(more)
    share = 1 / (rate * results.ceilings.bytes) if rate and results.ceilings else None
    text = f"{what}, {DECODE_KEYS:,} keys: useful bytes at {DECODE_BANDWIDTH:g} of the copy bandwidth at least"
    yield Promise(text, share, kept=share is not None and share >= DECODE_BANDWIDTH)
    before = byte_seconds(fewer)
    growth = rate / before if rate and before else None
    limit = f"at most {DECODE_GROWTH:g}x of what it takes at {DECODE_FEWER_KEYS:,}"
    text = f"{what}: a useful byte takes at {DECODE_KEYS:,} keys {limit}"
    yield Promise(text, growth, kept=growth is not None and growth <= DECODE_GROWTH)


def byte_seconds(m: Measurement | None) -> float | None:
    """Time for each byte that a call must read or write."""
    return m.seconds / m.work.bytes if m and m.work else None


def title(results: Results, contender: str) -> str:
    return f"{pattern_words(results.config, contender)}, {shape_words(results.config)}"
