"""The promises about sparse models of transformers on one H200: each one's limit, and the figure that decides it."""

from __future__ import annotations

from collections.abc import Iterator

from gossamer.bench import Promise

from .records import Endless, Race, Report

CONTEXT = 65536
TOKENS = 200_000
DRIFT = 0.05
"""By so much the last block's token may differ from the first's."""
MEMORY = 1.01
"""So much of the least that was held may be held at any block's end."""

OURS = ("gossamer", "gossamer-graph", "gossamer-compiled")
SDPA = ("sdpa", "cudnn", "sdpa-compiled")
FLEX = ("flex-dense", "flex", "flex-compiled")


def promises(report: Report) -> Iterator[Promise]:
    """Every promise of the sections that ran, with the figure that decides it."""
    for race in report.races.values():
        yield faster(race, SDPA, "sdpa")
        yield faster(race, FLEX, "FlexAttention")
        if len(race.results.config.model.lengths) > 1:
            yield flat_cache(race)
    if report.endless:
        yield from endless_promises(report.endless)


def faster(race: Race, rivals: tuple[str, ...], whom: str) -> Promise:
    """That the fastest of ours is faster than the fastest of these rivals."""
    found = [m for name in OURS if (m := race.at(name, CONTEXT))]
    ratios = [ratio for m in found if (ratio := race.results.speedup(m, over=rivals))]
    ratio = max(ratios, default=None)
    text = f"{race.case}, {CONTEXT:,} tokens of context: more than 1x as fast as the fastest {whom}"
    return Promise(text, ratio, kept=ratio is not None and ratio > 1)


def flat_cache(race: Race) -> Promise:
    """That our cache is no larger behind the longest text than behind the shortest."""
    lengths = race.results.config.model.lengths
    ends = [[race.held.get((name, n)) for n in (min(lengths), max(lengths))] for name in OURS]
    ratios = [long / short for short, long in ends if short and long]
    growth = max(ratios, default=None)
    text = f"{race.case}: the cache behind {max(lengths):,} tokens, in those behind {min(lengths):,}, at most 1"
    return Promise(text, growth, kept=growth is not None and growth <= 1)


def endless_promises(endless: Endless) -> Iterator[Promise]:
    """That neither time nor memory of a token grows, however many have been written."""
    told = len(endless.seconds) * endless.size
    what = f"{TOKENS:,} tokens without end"
    whole = told >= TOKENS
    growth, spread = endless.growth if whole else None, endless.spread if whole else None
    text = f"{what}: a token of the last {endless.size:,} takes what one of the first takes, within {DRIFT:.0%}"
    yield Promise(text, growth, kept=growth is not None and abs(growth - 1) <= DRIFT)
    text = f"{what}: the most memory held, in the least, at most {MEMORY:g}"
    yield Promise(text, spread, kept=spread is not None and spread <= MEMORY)
