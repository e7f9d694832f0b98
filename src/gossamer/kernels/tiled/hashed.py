"""Hashed attention in plain PyTorch: the algorithm to read first, on every device and in float64.

A few chunks at a time: their tokens, the tokens of the chunks that they meet, a dense softmax between them, and its
result joined to what earlier rounds have left. A place without a token holds token N, a row of zeros that nobody
sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...selectors.rounds import Chunks, SortedRounds
from ..hashed import ALONE, Forwarded, Scores

MOST_SCORES = 2**21
"""Of the chunks that are computed together."""


@dataclass(frozen=True)
class Meeting:
    """A few chunks of one round and the chunks that each of them meets."""

    rows: Tensor
    """int64 [B, H, C, m]: where the tokens of each chunk stand among the rows of all heads."""
    met: Tensor
    """int64 [B, H, C, w]: the same for those that it meets."""
    visible: Tensor
    """bool [B, H, C, m, w]"""
    itself: Tensor
    """bool [B, H, C, m, w]"""
    times: Tensor | None
    """int [B, H, C, m, w]: in how many rounds the pair meets; None where each meeting counts."""

    def scores(self, product: Tensor) -> Tensor:
        """Scores of products [B, H, C, m, w]; minus infinity where nothing is seen."""
        if self.times is not None:
            product = product - self.times.clamp(min=1).to(product.dtype).log()
        return torch.where(self.itself, ALONE, product).masked_fill(~self.visible, -torch.inf)


class Tiled:
    """Runs on every device, in float64, float32, bfloat16 and float16."""

    name = "tiled"

    def refuses(self, x: Tensor, v: Tensor) -> str | None:
        """Never: the operator takes only what it computes."""
        return None

    def forward(self, x: Tensor, v: Tensor, rounds: SortedRounds, scores: Scores) -> tuple[Tensor, Tensor]:
        """(out, log-sum-exp), as `Road` says."""
        queries, keys, values = _rows(x), _rows(x * scores.units(x)[..., None]), _rows(v)
        out = values.new_zeros(values.shape)
        lse = values.new_full((values.shape[0], 1), -torch.inf)
        for meeting in Walk(rounds, scores.chunks):
            rows, met = meeting.rows, meeting.met
            score = meeting.scores(queries[rows] @ keys[met].mT * scores.scale)
            added = torch.logsumexp(score, -1, keepdim=True)
            mean = torch.exp(score - _finite(added)) @ values[met]
            total = torch.logaddexp(lse[rows], added)
            out[rows] = out[rows] * torch.exp(lse[rows] - _finite(total)) + mean * torch.exp(added - _finite(total))
            lse[rows] = total
        return _unrowed(out, v).to(v.dtype), _unrowed(lse, v)[..., 0]

    def backward(
        self, saved: Forwarded, grad_out: Tensor, grad_lse: Tensor | None, rounds: SortedRounds, scores: Scores
    ) -> tuple[Tensor, Tensor]:
        """(gradient of x, gradient of v), as `Road` says."""
        x, v = saved.x, saved.v
        units = scores.units(x)[..., None]
        queries, keys, values, grads = _rows(x), _rows(x * units), _rows(v), _rows(grad_out)
        delta = torch.linalg.vecdot(grad_out.to(grads.dtype), saved.out.to(grads.dtype))
        delta = _rows((delta if grad_lse is None else delta - grad_lse)[..., None])
        lse = _finite(_rows(saved.lse[..., None]))
        dq, dk, dv = (torch.zeros_like(y) for y in (queries, keys, values))
        for meeting in Walk(rounds, scores.chunks):
            rows, met = meeting.rows, meeting.met
            score = meeting.scores(queries[rows] @ keys[met].mT * scores.scale)
            weight = torch.exp(score - lse[rows])
            slope = weight * (grads[rows] @ values[met].mT - delta[rows])
            slope = slope.masked_fill(meeting.itself, 0.0) * scores.scale  # a token's score with itself is no product
            dq[rows] += slope @ keys[met]
            _add(dk, met, slope.mT @ queries[rows], rows.shape[-1])
            _add(dv, met, weight.mT @ grads[rows], rows.shape[-1])
        dq, dk = _unrowed(dq, x), _unrowed(dk, x)
        key = x * units
        dx = dq + units * (dk - key * (dk * key).sum(-1, keepdim=True))
        return dx.to(x.dtype), _unrowed(dv, v).to(v.dtype)


TILED_HASHED = Tiled()


class Walk:
    """All chunks of all rounds, as many at a time as fit together."""

    def __init__(self, rounds: SortedRounds, chunks: Chunks):
        self.rounds, self.chunks = rounds, chunks
        self.batch, self.heads, self.turns, self.length = rounds.order.shape
        self.count, self.met = chunks.count(self.length), chunks.met(self.length, self.turns)
        tokens = rounds.order.long()
        if rounds.count is not None:
            places = torch.arange(self.length, device=tokens.device)
            tokens = tokens.masked_fill(places >= rounds.count[:, None, None, None], self.length)
        tokens = F.pad(tokens, (0, self.count * chunks.size - self.length), value=self.length)
        self.tokens = tokens.unflatten(-1, (self.count, chunks.size))  # [B, H, R, C, m]
        start, stop, place = rounds.start, rounds.stop, rounds.place
        self.spans = None if start is None or stop is None else (_by_row(start), _by_row(stop))
        self.place = None if place is None else _by_row(place)

    def __iter__(self) -> Iterator[Meeting]:
        some = max(1, MOST_SCORES // max(self.batch * self.heads * self.met * self.chunks.size**2, 1))
        for turn in range(self.turns if self.count else 0):
            for chunk in torch.arange(self.count, device=self.tokens.device).split(some):
                yield self.meeting(turn, chunk)

    def meeting(self, turn: int, chunk: Tensor) -> Meeting:
        """Chunks of a round, and who is seen from them."""
        steps = range(-self.chunks.before, self.met - self.chunks.before)
        near = [self.beside(turn, chunk + step) for step in steps]
        queries, keys = self.tokens[:, :, turn, chunk], torch.cat(near, -1)
        query, key = queries[..., :, None], keys[..., None, :]
        rows, met, times = self.rows_of(queries), self.rows_of(keys), None
        itself = query == key
        visible = (query < self.length) & (key < self.length) & (~itself | self.own_chunk(turn, steps))
        if self.chunks.causal:
            visible &= key <= query
        if self.spans is not None:  # here chunks stop at the edges of the round
            start, stop = self.spans
            places = torch.cat([(chunk + step)[:, None] * self.chunks.size + self.offsets for step in steps], -1)
            visible &= _inside(places[:, None, :], start[rows, turn][..., None], stop[rows, turn][..., None])
            if self.place is not None:
                start, stop = (x[rows][..., :, None, :] for x in self.spans)
                times = _inside(self.place[met][..., None, :, :], start, stop).sum(-1)
        return Meeting(rows, met, visible, itself, times)

    def beside(self, turn: int, chunk: Tensor) -> Tensor:
        """Tokens [B, H, C, m] of chunks that may lie beyond the edge of the round."""
        if self.chunks.edge == "crosses":
            return self.tokens.flatten(2, 3)[:, :, (turn * self.count + chunk) % (self.turns * self.count)]
        found = self.tokens[:, :, turn, chunk % self.count]
        if self.chunks.edge == "wraps":
            return found
        return found.masked_fill(((chunk < 0) | (chunk >= self.count))[:, None], self.length)

    def own_chunk(self, turn: int, steps: range) -> Tensor:
        """bool [w]: which of the tokens that a chunk meets are its own in the first round, the only one in which a
        token meets itself."""
        ring = self.count * (self.turns if self.chunks.edge == "crosses" else 1)
        own = torch.tensor([turn == 0 and step % ring == 0 for step in steps], device=self.tokens.device)
        return own.repeat_interleave(self.chunks.size)

    def rows_of(self, tokens: Tensor) -> Tensor:
        """Where tokens [B, H, C, …] stand among the rows of all heads, of which each has one more than tokens."""
        lane = torch.arange(self.batch * self.heads, device=tokens.device).view(self.batch, self.heads, 1, 1)
        return tokens + lane * (self.length + 1)

    @property
    def offsets(self) -> Tensor:
        return torch.arange(self.chunks.size, device=self.tokens.device)


def _inside(place: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    return (place >= start) & (place < stop)


def _with_nobody(x: Tensor) -> Tensor:
    """[B, H, N + 1, D]: a row of zeros for the token that does not exist."""
    return F.pad(x, (0, 0, 0, 1))


def _by_row(x: Tensor) -> Tensor:
    """[B · H · (N + 1), R]"""
    return _with_nobody(x).flatten(0, 2)


def _rows(x: Tensor) -> Tensor:
    """[B · H · (N + 1), D] in the dtype that is computed in: half precision is computed in float32."""
    return _by_row(x).to(torch.promote_types(x.dtype, torch.float32))


def _unrowed(rows: Tensor, x: Tensor) -> Tensor:
    """[B, H, N, D] of rows that belong to the tokens of `x`."""
    batch, heads, length, _ = x.shape
    return rows.view(batch, heads, length + 1, rows.shape[-1])[:, :, :length]


def _finite(lse: Tensor) -> Tensor:
    """Zero in place of minus infinity: what is subtracted from it then is minus infinity, and not NaN."""
    return lse.masked_fill(lse == -torch.inf, 0.0)


def _add(total: Tensor, rows: Tensor, part: Tensor, size: int) -> None:
    """Adds one chunk of each at a time: in it no token comes twice, so that the order of adding is fixed."""
    for some, values in zip(rows.split(size, -1), part.split(size, -2), strict=True):
        total.index_add_(0, some.flatten(), values.flatten(0, -2))
