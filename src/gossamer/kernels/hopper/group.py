"""One group of heads: which kernel takes which of its passes, and how several passes become one softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...plan import Plan
from ..head_runs import HeadRun
from ..problem import Softmax
from ..spans import Span
from . import columns, stream_backward, stream_forward, sweep_backward, sweep_forward
from .block_pass import BlockPass
from .descriptors import addressable
from .doubled import distinct
from .operands import Asking, Diagonal, Inputs, Results, SeenKeys, Segment
from .passes import Pass, joined, passes
from .ring import AUX

Fits = Callable[[int, int, int], bool]


class Group:
    """The heads of one run, with the keys and values that they use."""

    def __init__(self, run: HeadRun, plan: Plan, q: Tensor, k: Tensor, v: Tensor, softmax: Softmax):
        self.q = addressable(run.of_queries(q))
        self.k, self.v = addressable(run.of_keys(k)), addressable(run.of_keys(v))
        self.repeats, self.scale = run.repeats, softmax.scale
        self.blocks = BlockPass.of(run, plan, softmax, self.q)
        self.passes, self.whole = (), None
        if softmax.is_live and softmax.blocks is None:
            self.passes = tuple(each.seen(softmax) for each in passes(run.group, plan, q.device))
        elif softmax.blocks is None:
            found = joined(run.group, plan, q.device, apart=run.fresh)
            self.passes, self.whole = found.passes, found.whole
        self.gathered: dict[Span, tuple[Tensor, Tensor]] = {}

    def forward(self, sinks: Tensor | None, out: Tensor, lse: Tensor) -> None:
        """Writes the output and the log-sum-exp of the group."""
        rest = self.passes
        if self.blocks is not None:
            self.blocks.forward(self._inputs(self.q), out, lse, sinks)
        elif self._begins_whole():
            self._forward(rest[0], self.q, out, lse, sinks)
            rest = rest[1:]
        else:  # no pass writes every query: start from what the sinks alone give
            out.zero_()
            lse.copy_(lse.new_full((), -torch.inf) if sinks is None else sinks.float()[:, None])
        for each in rest:
            q = self.q if each.queries is None else self.q.index_select(2, each.queries)
            some_out, some_lse = out.new_empty(*q.shape[:-1], out.shape[-1]), lse.new_empty(q.shape[:-1])
            self._forward(each, q, some_out, some_lse, None)
            _merge(out, lse, some_out, some_lse, each.queries)
        if self.whole is not None:
            self.whole.forward(self._inputs(self.q), sinks, out, lse, scale=self.scale)

    def backward(self, results: Results, dq: Tensor, dk: Tensor, dv: Tensor, *, fresh: bool) -> None:
        """Writes dq; writes dk and dv, or adds to them where they are not `fresh`."""
        rest, apart, whole = self.passes, None, None
        if self.whole is not None:
            apart, results = self.whole.taken_from(self._inputs(self.q), results)
        if self.blocks is not None:
            self.blocks.backward(self._inputs(self.q), results, Inputs(dq, dk, dv), fresh=fresh)
            fresh = False
        elif self._begins_whole():
            asking = self._queries_backward(rest[0], self.q, results, dq)
            if apart is not None:
                whole = apart.backward(self._inputs(self.q), dq, scale=self.scale)
            self._keys_backward(rest[0], asking, dk, dv, fresh=fresh, whole=whole)
            rest, fresh = rest[1:], False
        else:
            dq.zero_()
        for each in rest:
            q = self.q if each.queries is None else self.q.index_select(2, each.queries)
            some, some_dq = results.of(each.queries), torch.empty_like(q)
            asking = self._queries_backward(each, q, some, some_dq)
            _add(dq, some_dq, each.queries)
            self._keys_backward(each, asking, dk, dv, fresh=fresh)
            fresh = False
        if fresh:  # no pass has written them
            dk.zero_()
            dv.zero_()

    def _begins_whole(self) -> bool:
        """Whether the first pass writes every query."""
        return bool(self.passes) and self.passes[0].queries is None

    def _forward(self, each: Pass, q: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None) -> None:
        diagonal = self._streamed(each.diagonals, out.shape[-1], stream_forward.fits)
        if diagonal is not None:
            stream_forward.forward(self._inputs(q), out, lse, sinks, diagonal=diagonal, scale=self.scale)
        else:
            sweep_forward.forward(q, self._segments(each), out, lse, sinks, scale=self.scale)

    def _queries_backward(self, each: Pass, q: Tensor, results: Results, dq: Tensor) -> Asking:
        """Writes dq, and returns what the gradients of keys need to know of each query."""
        aux = q.new_empty(*q.shape[:-1], AUX.value, dtype=torch.bfloat16)
        diagonal = self._streamed(each.diagonals, results.out.shape[-1], stream_backward.fits)
        if diagonal is not None and self.whole is None:  # the streaming kernel knows of no absent query
            stream_backward.backward_queries(self._inputs(q), results, dq, aux, diagonal=diagonal, scale=self.scale)
        else:
            sweep_backward.backward_queries(q, self._segments(each), results, dq, aux, scale=self.scale)
        return Asking(q, results.grad_out, aux)

    def _keys_backward(
        self, each: Pass, asking: Asking, dk: Tensor, dv: Tensor, *, fresh: bool, whole: Asking | None = None
    ) -> None:
        """Writes dk and dv where they are fresh, else adds to them; the first span's keys are seen by the `whole`."""
        for span, diagonal in zip(each.spans, each.diagonals, strict=True):
            if span.keys is None and fresh:
                self._all_keys_backward(span, diagonal, asking, dk, dv, whole)
            else:
                parts = self._some_keys_backward(span, asking)
                if fresh:
                    columns.write_sums(parts, dk, dv, distinct(span), span.outside)
                else:
                    columns.add_sums(parts, dk, dv, distinct(span))
            fresh = False

    def _all_keys_backward(
        self, span: Span, diagonal: Diagonal | None, asking: Asking, dk: Tensor, dv: Tensor, whole: Asking | None
    ) -> None:
        """Writes every key's gradients where they belong."""
        streamed = self._streamed((diagonal,), dv.shape[-1], stream_backward.fits)
        if streamed is not None and self.whole is None:
            inputs, rest = self._inputs(asking.q), asking[1:]
            stream_backward.backward_keys(inputs, *rest, dk, dv, diagonal=streamed, scale=self.scale)
        else:
            keys = SeenKeys(self.k, self.v, *span.seen_by, diagonal and diagonal.turned)
            sweep_backward.backward_keys(asking, keys, dk, dv, scale=self.scale, whole=whole)

    def _some_keys_backward(self, span: Span, asking: Asking) -> tuple[Tensor, Tensor]:
        """Gradients of the span's keys in their order, float32 [parts, …]: what each part of the queries gives."""
        k, v = self._keys_of(span)
        parts = sweep_backward.splits(k, v, asking.q)
        dk, dv = (x.new_empty(parts, *x.shape, dtype=torch.float32) for x in (k, v))
        sweep_backward.backward_keys(asking, SeenKeys(k, v, *span.seen_by), dk, dv, scale=self.scale)
        return dk, dv

    def _inputs(self, q: Tensor) -> Inputs:
        return Inputs(q, self.k, self.v)

    def _segments(self, each: Pass) -> list[Segment]:
        return [
            Segment(*self._keys_of(span), span.start, span.stop, diagonal)
            for span, diagonal in zip(each.spans, each.diagonals, strict=True)
        ]

    def _keys_of(self, span: Span) -> tuple[Tensor, Tensor]:
        """The span's keys and values in its order, gathered once a call."""
        if span.keys is None:
            return self.k, self.v
        if span not in self.gathered:
            self.gathered[span] = columns.gathered(self.k, self.v, span.keys)
        return self.gathered[span]

    def _streamed(self, diagonals: tuple[Diagonal | None, ...], value_width: int, fits: Fits) -> Diagonal | None:
        """The band that a streaming kernel takes: alone, without shared key heads, narrow enough to gain by it."""
        diagonal = diagonals[0] if len(diagonals) == 1 and self.repeats == 1 else None
        return diagonal if diagonal and fits(diagonal.width, self.q.shape[-1], value_width) else None


def _merge(out: Tensor, lse: Tensor, some_out: Tensor, some_lse: Tensor, queries: Tensor | None) -> None:
    """Joins a further pass into the outputs of its queries: softmax over the keys of both."""
    rows = slice(None) if queries is None else queries
    before = lse[:, :, rows]
    both = torch.logaddexp(before, some_lse)
    finite = both.masked_fill(both == -torch.inf, 0.0)
    share, some_share = (torch.exp(x - finite)[..., None] for x in (before, some_lse))
    lse[:, :, rows] = both
    out[:, :, rows] = (share * out[:, :, rows] + some_share * some_out).to(out.dtype)


def _add(total: Tensor, part: Tensor, rows: Tensor | None) -> None:
    """Adds in float32 and rounds once; the rows are distinct, so that the sum has one order."""
    chosen = slice(None) if rows is None else rows
    total[:, :, chosen] = (total[:, :, chosen].float() + part).to(total.dtype)
