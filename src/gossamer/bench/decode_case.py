"""Decoding: one new query of each sequence against its cache, launched as serving launches it."""

from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..patterns import Pattern
from ..plan import plan
from ..reference import visible
from .attention_cases import trial_of
from .backends import Backends, decode_backends
from .cache import ROOM, Cache, filled_of
from .case import Case, Contender, Step
from .clock import replayed
from .config import TITLES
from .contenders import Attention
from .floor import Work
from .gate import last_rows_fault, wrong_pairs
from .setting import Setting

Problem = tuple[Tensor, Cache]
"""The new queries [B, H, 1, D], and the cache in which they stand at the last key."""


def decode_case(setting: Setting, rivals: tuple[Attention, ...]) -> Case:
    """Attention of one new token, from a CUDA graph on a GPU: there a launch from the host would outlast the work."""
    draw = lru_cache(maxsize=1)(partial(_draw, setting))
    contenders = tuple(
        Contender(
            name=rival.name,
            prepare=lambda n, rival=rival: replayed(_step(rival, n, draw(n)), setting.device),
            fault=partial(decode_fault, setting, rival),
            missing=rival.missing or (None if rival.decode else "is not measured at decoding"),
            fault_at=lambda n, step, rival=rival: _fault_at(step, draw(n), rival.pattern(n)),
            work=partial(decode_work, setting, rival),
            backends=partial(_backends, setting, rival) if rival.ours else None,
        )
        for rival in rivals
    )
    return Case(TITLES["decode"], setting.config.lengths, contenders)


def _draw(setting: Setting, capacity: int) -> Problem:
    c = setting.config
    generator = torch.Generator(setting.device).manual_seed(c.seed)

    def random(heads: int, length: int) -> Tensor:
        shape = c.batch, heads, length, c.head_width
        return torch.randn(shape, generator=generator, device=setting.device, dtype=setting.dtype)

    k, v = random(setting.key_heads, capacity), random(setting.key_heads, capacity)
    return random(c.heads, 1), Cache.of(k, v, filled_of(capacity))


def _step(attention: Attention, capacity: int, problem: Problem) -> Step:
    assert attention.decode is not None  # else the contender is missing
    decode, (q, cache) = attention.decode(capacity), problem

    def step() -> Tensor:
        with torch.no_grad():
            return decode(q, cache)

    return step


def _backends(setting: Setting, attention: Attention, capacity: int) -> Backends:
    return decode_backends(setting, attention.pattern(capacity), capacity)


def decode_work(setting: Setting, attention: Attention, capacity: int) -> Work:
    """Products over the visible pairs alone; each key and value that is seen read once for all heads that share it."""
    c = setting.config
    pairs = c.batch * plan(attention.pattern(capacity), 1, filled_of(capacity), c.heads).pairs
    rows = 2 * pairs * setting.key_heads // c.heads + 2 * c.batch * c.heads  # keys and values; queries and output
    return Work(operations=4 * c.head_width * pairs, bytes=rows * c.head_width * setting.dtype.itemsize)


def decode_fault(setting: Setting, attention: Attention) -> str | None:
    """Which pairs this attention gets wrong on a small cache with NaN behind its keys; None where none is."""
    assert attention.decode is not None
    trial = trial_of(setting)
    pattern, decode = attention.pattern(trial.length), attention.decode(trial.length)

    def last_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (pad(x.detach(), (0, 0, 0, ROOM)) for x in (k, v))
        with torch.no_grad():
            return decode(q[:, :, -1:], Cache.of(k, v, trial.length))

    return wrong_pairs(last_query, visible(pattern, trial.length, trial.length, trial.device)[..., -1:, :], trial)


def _fault_at(step: Step, problem: Problem, pattern: Pattern) -> str | None:
    """Whether the prepared step is right at its own size, written over NaN: its last sequence, for two key heads."""
    q, cache = problem
    for poison in (True, False):
        out = step()
        assert isinstance(out, Tensor)
        if poison:  # a graph writes to the same place again
            out.fill_(torch.nan)
    return last_rows_fault({"output": out}, [q, *cache.filled_part, torch.ones_like(q)], pattern)
