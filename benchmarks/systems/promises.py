"""The promises about the systems on one H200: each one's limit, and the figure that decides it."""

from __future__ import annotations

from collections.abc import Iterator

from gossamer.bench import Promise, Results

OVER_TRANSFORMERS = 4.0
GROWTH = 1.25
"""At one number of tokens in all, the longest sequences may take so much more time than the shortest."""
HALF = 0.8
"""What half the window takes, in what the whole window takes: attention alone, for a module's projections have none."""
OVER_DENSE = 6.0

Runs = dict[str, Results]


def promises(runs: Runs) -> Iterator[Promise]:
    """Every promise of the sections that ran, with the figure that decides it."""
    for name, results in runs.items():
        for case in results.cases:
            yield from block_promises(results, case) if name == "blocks" else module_promises(results, case)


def module_promises(results: Results, case: str) -> Iterator[Promise]:
    lengths = results.config.lengths
    for length in lengths if "transformers" in results.contenders(case) else ():
        ratio = faster(results, case, length, ("transformers",))
        text = f"{case}, {length:,} tokens, forward + backward: at least {OVER_TRANSFORMERS:g}x as fast as transformers"
        yield Promise(text, ratio, kept=ratio is not None and ratio >= OVER_TRANSFORMERS)
    ends = [seconds(results, case, "gossamer", n) for n in (lengths[0], lengths[-1])]
    growth = ends[1] / ends[0] if ends[0] and ends[1] else None
    text = f"{case}: as many tokens, in sequences of {lengths[-1]:,}, in the time of those of {lengths[0]:,}"
    yield Promise(f"{text}, at most {GROWTH:g}", growth, kept=growth is not None and growth <= GROWTH)
    half = next((name for name in results.contenders(case) if name.endswith("half the window")), None)
    if half and "transformers" not in results.contenders(case):
        both = [seconds(results, case, name, lengths[-1]) for name in (half, "gossamer")]
        ratio = both[0] / both[1] if both[0] and both[1] else None
        text = f"{case}, {lengths[-1]:,} tokens: half the window in the time of the whole one, at most {HALF:g}"
        yield Promise(text, ratio, kept=ratio is not None and ratio <= HALF)


def block_promises(results: Results, case: str) -> Iterator[Promise]:
    length = results.config.lengths[-1]
    limits = {
        ("cudnn",): (OVER_DENSE, "dense cuDNN"),
        ("flex",): (1.0, "FlexAttention"),
        ("fa4",): (1.0, "FlashAttention-4"),
    }
    for rivals, (limit, whom) in limits.items():
        ratio = faster(results, case, length, rivals)
        text = f"{case}, {length:,} tokens: at least {limit:g}x as fast as {whom}"
        yield Promise(text, ratio, kept=ratio is not None and ratio >= limit)


def faster(results: Results, case: str, length: int, rivals: tuple[str, ...]) -> float | None:
    """How many times as fast as these rivals we are."""
    m = results.measurement(case, "gossamer", length)
    return m and results.speedup(m, over=rivals)


def seconds(results: Results, case: str, name: str, length: int) -> float | None:
    """What one contender took."""
    m = results.measurement(case, name, length)
    return m and m.seconds
