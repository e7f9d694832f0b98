"""One layer's cache: attention of new tokens to those before them, of which only what is read again is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..attention import attend
from ..patterns import Causal, Excerpt, Pattern, PerHead
from ..patterns.base import Or, looks_at_distance_alone, require_integer
from .kept_keys import Clocks, Excerpted, KeptKeys
from .survivors import Positions


@dataclass(frozen=True, eq=False)
class Scores:
    """What becomes of the scores; the names and the meaning are those of `attend`."""

    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, lengths: Tensor | None = None) -> Tensor:
        """`attend` with these settings."""
        return attend(
            q, k, v, pattern,
            scale=self.scale, softcap=self.softcap, sinks=self.sinks, dropout=self.dropout, lengths=lengths,
        )  # fmt: skip

    def of_heads(self, heads: slice) -> Scores:
        """The same for some of the heads."""
        return self if self.sinks is None else replace(self, sinks=self.sinks[heads])


@dataclass(frozen=True, eq=False)
class _Run:
    """Neighbouring key heads whose query heads follow the same patterns, and what is held for them."""

    queries: slice
    keys: slice
    pattern: Pattern
    store: KeptKeys


def counted(owner: str, padding: Sequence[int]) -> tuple[int, ...]:
    """Numbers of padding tokens as a tuple, or an error that names the owner, the value and the fix."""
    return tuple(require_integer(owner, "padding of a sequence", some, least=0) for some in padding)


class LayerCache:
    """Attention over all tokens so far, as `attend` over the whole sequence gives it, in the memory of what is read.

    Each call brings new tokens, which stand behind those of the calls before. A key is held as long as some later
    query of its heads may see it, with its true position. For inference: no gradient reaches an earlier call.

    >>> from gossamer import Causal, Window
    >>> cache, x = LayerCache(Causal() & Window(4)), torch.randn(1, 2, 100, 8)
    >>> out = torch.cat([cache.attend(piece, piece, piece) for piece in x.split(7, dim=2)], dim=2)
    >>> torch.allclose(out, attend(x, x, x, Causal() & Window(4)), atol=1e-5), cache.held
    (True, 4)
    """

    def __init__(self, pattern: Pattern, *, padding: Sequence[int] | None = None):
        """`padding`: how many of each sequence's first tokens are padding, which nobody sees; by default none."""
        self.pattern = pattern
        self.padding = None if padding is None else counted("LayerCache", padding)
        self.seen = 0
        """Tokens of a sequence so far, its padding included."""
        self.torn = False
        """Whether a call has begun and not ended: some heads may hold its tokens, and others not."""
        self.runs: list[_Run] = []

    @property
    def held(self) -> int:
        """Keys held of the sequence and the head that has most."""
        return max((int(run.store.filled.max()) for run in self.runs), default=0)

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return sum(x.nbytes for run in self.runs for x in (run.store.keys, run.store.values))

    def attend(
        self,
        q: Float[Tensor, "B H N D"],
        k: Float[Tensor, "B G N D"],
        v: Float[Tensor, "B G N Dv"],
        scores: Scores | None = None,
    ) -> Float[Tensor, "B H N Dv"]:
        """Attention of the new tokens to all so far; those of padding give zeros.

        Raises:
            ValueError: The new tokens do not fit those held before, or each other.
            RuntimeError: An earlier call broke off within attention.
        """
        scores = scores or Scores()
        self._require_alike(q, k, v, scores)
        if not self.runs:
            self.runs = list(self._made(q.shape[0], q.shape[1], k.shape[1]))
        self.torn = True
        out = [
            _attended(run, q[:, run.queries], k[:, run.keys], v[:, run.keys], scores.of_heads(run.queries))
            for run in self.runs
        ]
        self.seen += k.shape[2]
        self.torn = False
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)

    @property
    def may_be_padded(self) -> bool:
        """Whether the next token of some sequence may be padding: all that came of it were."""
        return self.seen in (self.padding or (0,))

    def pad(self, padding: Sequence[int]) -> None:
        """Says how many of each sequence's first tokens are padding; more than before only where all were so far.

        Raises:
            ValueError: A token that has come would become padding, or padding a token.
        """
        before = self.padding or [0] * len(padding)
        if len(before) != len(padding):
            raise ValueError(f"padding is of {len(padding)} sequences, but the cache is of {len(before)}")
        changed = [row for row, (old, new) in enumerate(zip(before, padding, strict=True)) if old != new]
        if any(min(before[row], padding[row]) < self.seen for row in changed):
            raise ValueError(
                f"padding is {list(padding)}, and was {list(before)} when the cache began; give the same zeros before "
                f"each sequence, and ones for all that follows"
            )
        for run in self.runs:
            run.store.next -= np.array(padding) - np.array(before)
        self.padding = tuple(padding)

    def pick(self, order: Tensor) -> None:
        """Goes on with the sequences `order` [B'] of those held, as beam search asks."""
        for run in self.runs:
            run.store.pick(order)
        if self.padding is not None and (len(order) != len(self.padding) or len(set(self.padding)) > 1):
            self.padding = tuple(self.padding[row] for row in order.tolist())

    def repeats(self) -> bool:
        """Whether the next call with one token launches what the last one launched, so that a CUDA graph can."""
        return bool(self.runs) and all(run.store.repeats() for run in self.runs)

    def follow(self, clocks: Clocks | None) -> None:
        """From now on the device alone knows where new tokens go, by these clocks, or no longer."""
        for run in self.runs:
            run.store.follow(clocks)

    def counts(self) -> list[Positions]:
        """How many tokens the host has counted, for `count_back` where one was counted that did not come."""
        return [np.array(self.seen), *(run.store.next for run in self.runs)]

    def count_back(self, counts: list[Positions]) -> None:
        """Takes up the counts of before; nothing may have been written since."""
        self.seen = int(counts[0])
        for run, counted in zip(self.runs, counts[1:], strict=True):
            run.store.next = counted

    def repeated(self) -> None:
        """Counts one token that a replayed graph has taken."""
        self.seen += 1
        for run in self.runs:
            run.store.next = run.store.next + 1

    def repeat(self, times: int) -> None:
        """Goes on with each sequence `times` times, one after the other."""
        if self.runs:
            batch = len(self.runs[0].store.next)
            self.pick(torch.arange(batch).repeat_interleave(times))

    def _made(self, batch: int, heads: int, key_heads: int) -> Iterator[_Run]:
        """The runs of key heads, for which nothing is held yet."""
        if heads % key_heads:
            raise ValueError(f"q has {heads} heads and k has {key_heads}; the key heads must divide the query heads")
        padding = np.zeros(batch, np.int64) if self.padding is None else np.array(self.padding, np.int64)
        if padding.shape != (batch,):
            raise ValueError(f"padding is of {len(padding)} sequences, but q has {batch}; give one number for each")
        each = heads // key_heads
        of_head = [pattern for first, last, pattern in self.pattern.groups(heads) for _ in range(first, last)]
        numbered = enumerate(tuple(of_head[first : first + each]) for first in range(0, heads, each))
        for patterns, run in groupby(numbered, key=lambda numbered: numbered[1]):
            numbers = [number for number, _ in run]
            first, last = numbers[0], numbers[-1] + 1
            alike = len(set(patterns)) == 1
            every = patterns[0] if alike else PerHead([(one, 1) for one in patterns * (last - first)])
            kept = reduce(Or, dict.fromkeys(patterns))
            store = KeptKeys(Causal() & kept, padding.copy())
            store.plain = alike
            yield _Run(slice(first * each, last * each), slice(first, last), every, store)

    def _require_alike(self, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> None:
        if self.torn:
            raise RuntimeError(
                "an earlier call broke off within attention, or another thread is within one: the cache may hold some "
                "tokens twice or not at all; begin with a new cache"
            )
        fit = all(x.dim() == 4 for x in (q, k, v)) and q.shape[::2] == k.shape[::2] and q.shape[3] == k.shape[3]
        if not fit or k.shape[:3] != v.shape[:3]:
            raise ValueError(
                f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: give [batch, heads, "
                f"length, width] of the new tokens alone, as many queries as keys and values"
            )
        if scores.sinks is not None and scores.sinks.shape != q.shape[1:2]:
            raise ValueError(f"sinks has shape {tuple(scores.sinks.shape)}; give one for each of {q.shape[1]} heads")
        if self.runs:
            self._require_as_before(q, k, v)

    def _require_as_before(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        first, last = self.runs[0], self.runs[-1]
        store, batch = first.store, len(first.store.next)
        for name, new, heads in (("q", q, last.queries.stop), ("k", k, last.keys.stop)):
            if new.shape[:2] != (batch, heads):
                raise ValueError(
                    f"{name} has shape {list(new.shape)}, but the cache is of [{batch}, {heads}, tokens, width]; give "
                    f"the next tokens of the sequences that it began with"
                )
        for name, new, held in () if store.empty else (("k", k, store.keys), ("v", v, store.values)):
            if new.shape[3] != held.shape[3] or new.dtype != held.dtype:
                raise ValueError(
                    f"{name} is {new.dtype} of width {new.shape[3]}, but the cache holds {held.dtype} of width "
                    f"{held.shape[3]}; give one width and one dtype throughout"
                )


def _attended(run: _Run, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
    store = run.store
    if k.shape[2] == 1 and store.step(k, v):
        return _over_all_held(store, q, scores)
    groups = store.groups()
    if len(groups) == 1 and store.next[0] >= 0:
        return _over_excerpt(run, groups[0], q, k, v, scores)
    out: Tensor | None = None
    for rows in groups:
        padding = int(np.clip(-store.next[rows[0]], 0, k.shape[2]))
        index = torch.from_numpy(rows).to(q.device)
        new_q, new_k, new_v = (x[index][:, :, padding:] for x in (q, k, v))
        store.next[rows] += padding
        if padding < k.shape[2]:
            found = _over_excerpt(run, rows, new_q, new_k, new_v, scores)
            out = found.new_zeros(*q.shape[:3], v.shape[3]) if out is None else out  # autocast decides its dtype
            out[index, :, padding:] = found
    return q.new_zeros(*q.shape[:3], v.shape[3]) if out is None else out


def _over_all_held(store: KeptKeys, q: Tensor, scores: Scores) -> Tensor:
    """One query of each sequence, which sees every key that is held; the order of keys is no matter to it."""
    filled = store.filled
    most = int(filled.max())
    lengths = None
    if filled.min() < most:
        lengths = torch.from_numpy(filled.astype(np.int32)).to(q.device)
    return scores.attend(q, store.keys[:, :, :most], store.values[:, :, :most], Causal(), lengths)


def _over_excerpt(run: _Run, rows: np.ndarray, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
    """New tokens of sequences that stand at one position, over what is held of them and over each other."""
    found: Excerpted = run.store.excerpt(rows, k, v)
    whole = not len(found.kept) and (not found.start or looks_at_distance_alone(run.store.pattern))
    pattern = run.pattern if whole else Excerpt(run.pattern, found.kept.tolist(), found.start)
    out = scores.attend(q, found.keys, found.values, pattern)
    run.store.keep(rows, found, k.shape[2])
    return out
