"""What stands between a plan and the Hopper kernels, proven without a GPU: dense stand-ins take the kernels' places."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer.kernels.devices import made_current
from gossamer.kernels.hopper.backend import HOPPER
from gossamer.kernels.problem import Problem, Saved, Softmax
from gossamer.kernels.spans import without_span
from gossamer.patterns import Causal, Dilated, Pattern, PerHead, RandomBlocks, Sinks, Strided, Tokens, Window, presets
from gossamer.plan import plan
from tests.checks import Problem as Drawn
from tests.checks import Setting, draw, oracle, run
from tests.kernels import columns_in_torch, row_shares_in_torch, run_tables_in_torch
from tests.patterns_list import HEADS, PATTERNS

pytest.importorskip("triton", reason="the Hopper backend's modules name Triton's types")

from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from gossamer.kernels.hopper import backend, descriptors, requirements
from gossamer.kernels.hopper.operands import Diagonal
from gossamer.kernels.hopper.passes import only_band, passes

REGULAR = {name: p for name, p in PATTERNS.items() if without_span(plan(p, 136, 136, HEADS[name])) is None}
JOINT = Causal() & (Window(20) | Sinks(3) | Tokens([40, 60]))
CPU = torch.device("cpu")
PARTLY = plan(RandomBlocks(64, 2, 0) & ~Window(5), 512, 512, 2)


def softmax_of(scores: Tensor, mask: Tensor, lse: Tensor) -> Tensor:
    absent = (lse == -torch.inf)[..., None]
    finite = lse.double()[..., None].masked_fill(absent, 0.0)
    return torch.exp(scores.masked_fill(~mask | absent, -torch.inf) - finite)


def columns(start: Tensor, stop: Tensor, count: int) -> Tensor:
    """[n, count] which columns lie in each row's run; [B, 1, n, count] where sequences have tables of their own."""
    column = torch.arange(count)
    shown = (column >= start[..., None]) & (column < stop[..., None])
    return shown[:, None] if shown.dim() == 3 else shown


def repeated(x: Tensor, q: Tensor) -> Tensor:
    return x.double().repeat_interleave(q.shape[1] // x.shape[1], 1)


DIGITS = 256 ** torch.arange(4)
"""Of these bfloat16 holds each digit as it is."""


class Dense:
    """The kernels' entry points over dense matrices in float64: `aux` says where log-sum-exp and delta are kept."""

    def __init__(self, streams: bool):
        self.streams = streams
        self.kept = torch.zeros(0, 2, dtype=torch.float64)
        """(log-sum-exp, delta) of every query of every call."""
        self.ran: list[str] = []

    def fits(self, *_: int) -> bool:
        return self.streams

    def _stack(self, segments: list) -> tuple[Tensor, Tensor, Tensor]:
        masks = [columns(each.start, each.stop, each.k.shape[2]) for each in segments]
        k, v = (torch.cat([getattr(each, name) for each in segments], 2) for name in "kv")
        return k, v, torch.cat(masks, -1)

    def _turns(self, q: Tensor, segments: list, results: list[Tensor], in_turn: bool) -> Iterator[tuple[Tensor, ...]]:
        """(keys, values, mask, results) of each of those who take turns, whose results lie tile by tile in turn."""
        k, v, mask = self._stack(segments)
        takers = results[0].shape[2] // q.shape[2]
        assert takers == 1 or (in_turn and len(segments) == 1)
        for taker in range(takers):
            turn = torch.arange(k.shape[2]) % takers == taker
            parts = [x.unflatten(2, (-1, takers, 64))[:, :, :, taker] if in_turn else x for x in results]
            written = [torch.empty_like(x).flatten(2, 3) if in_turn else x for x in parts]
            yield k, v, mask & turn, *written
            for part, x in zip(parts, written, strict=True) if in_turn else ():
                part.copy_(x.view_as(part))

    def sweep(self, q, segments, out, lse, sinks, *, scale: float, in_turn: bool = False) -> None:
        self.ran.append(f"sweep {len(segments)}{' in turn' if in_turn else ''}")
        for k, v, mask, *written in self._turns(q, segments, [out, lse], in_turn):
            self._forward(q, k, v, mask, *written, sinks, scale)

    def stream(self, inputs, out, lse, sinks, *, diagonal: Diagonal, scale: float) -> None:
        self.ran.append("stream")
        self._forward(*inputs, self._band(*inputs[:2], *diagonal), out, lse, sinks, scale)

    def _band(self, q: Tensor, k: Tensor, shift: int, width: int) -> Tensor:
        distance = torch.arange(q.shape[2])[:, None] + shift - torch.arange(k.shape[2])
        return (distance >= 0) & (distance < width)

    def _forward(self, q, k, v, mask, out, lse, sinks, scale) -> None:
        scores = q.double() @ repeated(k, q).mT * scale
        found = torch.logsumexp(scores.masked_fill(~mask, -torch.inf), -1)
        if sinks is not None:
            found = torch.logaddexp(found, sinks.double()[:, None].expand_as(found))
        out.copy_(softmax_of(scores, mask, found) @ repeated(v, q))
        lse.copy_(found)

    def sweep_queries(self, q, segments, results, dq, aux, *, scale: float, in_turn: bool = False) -> None:
        for k, v, mask, written in self._turns(q, segments, [dq], in_turn):
            self._queries(q, k, v, mask, results, written, aux, scale)

    def stream_queries(self, inputs, results, dq, aux, *, diagonal: Diagonal, scale: float) -> None:
        mask = self._band(*inputs[:2], *diagonal)
        assert not (mask.any(-1) & (results.lse == -torch.inf)).any(), "a streaming kernel knows of no absent query"
        self._queries(*inputs, mask, results, dq, aux, scale)

    def _queries(self, q, k, v, mask, results, dq, aux, scale) -> None:
        delta = (results.grad_out.double() * results.out.double()).sum(-1)
        delta = delta if results.grad_lse is None else delta - results.grad_lse.double()
        place = len(self.kept) + torch.arange(delta.numel()).view(*delta.shape, 1)
        aux[..., : len(DIGITS)] = (place // DIGITS % 256).to(aux.dtype)
        self.kept = torch.cat([self.kept, torch.stack([results.lse.double(), delta.double()], -1).flatten(0, 2)])
        dscores, _ = self._dscores(q, k, v, mask, results.grad_out, aux, scale)
        dq.copy_(dscores @ repeated(k, q))

    def sweep_keys(self, asking, keys, dk, dv, *, scale: float, whole=None) -> None:
        q, dout, aux = asking
        self._keys(q, keys.k, keys.v, columns(keys.first, keys.last, q.shape[2]).mT, dout, aux, dk, dv, scale)
        if whole is not None:
            self.ran.append("whole rows")
            q, dout, aux = whole
            everything = torch.ones(q.shape[2], keys.k.shape[2], dtype=torch.bool)
            more = torch.zeros_like(dk), torch.zeros_like(dv)
            self._keys(q, keys.k, keys.v, everything, dout, aux, *more, scale)
            dk += more[0]
            dv += more[1]

    def stream_keys(self, inputs, dout, aux, dk, dv, *, diagonal: Diagonal, scale: float) -> None:
        self._keys(*inputs, self._band(*inputs[:2], *diagonal), dout, aux, dk, dv, scale)

    def _keys(self, q, k, v, mask, dout, aux, dk, dv, scale) -> None:
        dscores, p = self._dscores(q, k, v, mask, dout, aux, scale)
        for total, found in ((dk, dscores.mT @ q.double()), (dv, p.mT @ dout.double())):
            found = found.unflatten(1, (k.shape[1], -1)).sum(2)
            if total.dim() == 5:  # parts whose sum is asked for
                total.zero_()
                total[-1] = found
            else:
                total.copy_(found)

    def _dscores(self, q, k, v, mask, dout, aux, scale) -> tuple[Tensor, Tensor]:
        lse, delta = self.kept[(aux[..., : len(DIGITS)].long() * DIGITS).sum(-1)].unbind(-1)
        p = softmax_of(q.double() @ repeated(k, q).mT * scale, mask, lse)
        return p * (dout.double() @ repeated(v, q).mT - delta[..., None]) * scale, p


@pytest.fixture(params=[True, False], ids=["streaming", "sweeping"])
def dense(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dense]:
    kernels = Dense(streams=request.param)
    places: dict[str, Callable] = {
        "stream_forward.fits": kernels.fits,
        "stream_backward.fits": kernels.fits,
        "stream_forward.forward": kernels.stream,
        "sweep_forward.forward": kernels.sweep,
        "stream_backward.backward_queries": kernels.stream_queries,
        "stream_backward.backward_keys": kernels.stream_keys,
        "sweep_backward.backward_queries": kernels.sweep_queries,
        "sweep_backward.backward_keys": kernels.sweep_keys,
        "sweep_backward.splits": lambda key, value, q: 3,
        "live_spans.run_tables.confined": run_tables_in_torch.confined,
        "live_spans.run_tables.turned": run_tables_in_torch.turned,
        "columns.gathered": columns_in_torch.gathered,
        "columns.write_sums": columns_in_torch.write_sums,
        "columns.add_sums": columns_in_torch.add_sums,
        "whole_rows.shares_of": lambda items, swept, device: 3,
        "row_shares.gathered": row_shares_in_torch.gathered,
        "row_shares.taken": row_shares_in_torch.taken,
        "row_shares.write_joined": row_shares_in_torch.write_joined,
        "row_shares.write_sums": row_shares_in_torch.write_sums,
    }
    for place, stand_in in places.items():
        monkeypatch.setattr(f"gossamer.kernels.{'' if place.startswith('live') else 'hopper.'}{place}", stand_in)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(backend, "_side_by_side", lambda works, *_, **__: [work() for work in works])
    yield kernels


def softmax_with(problem: Drawn) -> Softmax:
    within = None if problem.within is None else problem.within.expand(problem.q.shape[0], 2)
    return Softmax(problem.q.shape[-1] ** -0.5, within=within, runs=problem.runs)


class OnHopper(torch.autograd.Function):
    """The backend under autograd, as the operator puts it there."""

    @staticmethod
    def forward(ctx, problem: Drawn, q, k, v, sinks):
        made, softmax = plan(problem.pattern, q.shape[2], k.shape[2], q.shape[1]), softmax_with(problem)
        out, lse = HOPPER.forward(q, k, v, sinks, made, softmax)
        ctx.saved, ctx.plan, ctx.softmax = Saved(q, k, v, out, lse, sinks), made, softmax
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        return None, *HOPPER.backward(ctx.saved, grad_out, grad_lse, ctx.plan, ctx.softmax)


def on_hopper(problem: Drawn) -> tuple[Tensor, Tensor]:
    return OnHopper.apply(problem, problem.q, problem.k, problem.v, problem.sinks)


def check(pattern: Pattern, setting: Setting) -> None:
    check_drawn(draw(pattern, setting))


def check_drawn(problem: Drawn) -> None:
    found, right = run(on_hopper, problem), run(oracle, problem)
    for name, x in right.items():
        torch.testing.assert_close(
            found[name].double(), x, rtol=2e-5, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", REGULAR)
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
def test_every_regular_pattern_is_put_together_rightly(dense: Dense, name: str, sinks: bool) -> None:
    heads = HEADS[name]
    for key_heads in {1, heads}:
        setting = Setting(heads=heads, key_heads=key_heads, queries=100, keys=136, batch=2, width=8, sinks=sinks)
        check(REGULAR[name], setting)


WITHIN = ((0, 136), (0, 77), (59, 136), (64, 65), (40, 40))


@pytest.mark.parametrize("name", REGULAR)
def test_every_regular_pattern_is_put_together_within_ends(dense: Dense, name: str) -> None:
    setting = Setting(heads=HEADS[name], key_heads=1, queries=100, keys=136, batch=len(WITHIN), width=8, within=WITHIN)
    check(REGULAR[name], replace(setting, sinks=True))
    assert "stream" not in dense.ran


@pytest.mark.parametrize("shared", [False, True], ids=["runs of each sequence", "shared runs"])
def test_runs_are_tables_of_all_queries_and_keys(dense: Dense, shared: bool) -> None:
    problem = draw(Causal() | ~Causal(), Setting(heads=4, key_heads=2, queries=90, batch=3, width=8))
    start = torch.randint(0, 80, (3, 90)).sort(-1)[0].int()
    stop = torch.maximum(start, torch.randint(0, 91, (3, 90)).sort(-1)[0].int())
    check_drawn(replace(problem, runs=(start[:1], stop[:1]) if shared else (start, stop)))
    assert set(dense.ran) == {"sweep 1"}


def test_a_key_head_that_two_groups_share_gets_both_their_gradients(dense: Dense) -> None:
    pattern = PerHead([(Causal(), 3), (Causal() & Window(5), 3), (Strided(4), 2)])
    check(pattern, Setting(heads=8, key_heads=2, queries=70, width=8, sinks=True))


def test_window_and_columns_join_in_one_pass(dense: Dense) -> None:
    check(JOINT, Setting(heads=2, queries=100, width=8))
    assert "sweep 2" in dense.ran


@pytest.mark.parametrize(("tokens", "ran"), [((0, 70), "sweep 1 in turn"), (tuple(range(70)), "sweep 1")])
def test_whole_rows_are_apart(dense: Dense, tokens: tuple[int, ...], ran: str) -> None:
    check(presets.longformer(20, tokens), Setting(heads=2, queries=100, width=8, batch=2, sinks=True))
    assert dense.ran == ["sweep 2", ran, "whole rows"]


def test_whole_rows_beside_a_band_alone(dense: Dense) -> None:
    check(Window(9) | Tokens((5, 30)).T, Setting(heads=2, queries=100, width=8))
    assert dense.ran[0] == ("stream" if dense.streams else "sweep 1") and "whole rows" in dense.ran


def test_a_plain_band_goes_to_the_streaming_kernels(dense: Dense) -> None:
    check(Causal() & Window(9), Setting(heads=2, queries=100, width=8))
    assert set(dense.ran) == ({"stream"} if dense.streams else {"sweep 1"})


@pytest.mark.parametrize(
    ("pattern", "queries", "diagonal"),
    [
        (Causal() & Window(256), 1000, Diagonal(0, 256)),
        (Window(256), 1000, Diagonal(255, 511)),
        (Causal() & Window(256), 600, Diagonal(400, 256)),
        (Causal(), 1000, Diagonal(0, 1000)),
        (~Causal(), 1000, Diagonal(999, 999)),
    ],
)
def test_bands_are_diagonals_of_some_width(pattern: Pattern, queries: int, diagonal: Diagonal) -> None:
    made = plan(pattern, queries, 1000, 1)
    ((found,),) = (each.diagonals for each in passes(made.groups[0], made, CPU))
    assert found == diagonal


@pytest.mark.parametrize(
    ("pattern", "alone"),
    [
        (Causal() & Window(256), True),
        (JOINT, False),
        (PerHead([(Causal(), 1), (Window(4), 1)]), False),
        (Causal() & Window(8) & Strided(2), False),
        (Causal() & ~Causal(), False),
        (Window(6) | RandomBlocks(64, 1, 0), False),
    ],
    ids=str,
)
def test_a_band_that_is_all_of_a_plan_is_known(pattern: Pattern, alone: bool) -> None:
    assert (only_band(plan(pattern, 100, 100, 2), CPU) is not None) == alone


@pytest.mark.parametrize("current", [0, 1])
def test_the_device_is_changed_only_where_another_is_current(monkeypatch: pytest.MonkeyPatch, current: int) -> None:
    changed: list[torch.device] = []
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda x: contextlib.nullcontext(changed.append(x)))
    with made_current(torch.device("cuda", 1)):
        assert changed == ([] if current == 1 else [torch.device("cuda", 1)])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float32}, "torch.float32"),
        ({"width": 136}, "136 and 64"),
        ({"value_width": 60}, "64 and 60"),
        ({"softcap": 5.0}, "softcap"),
        ({"dropout": 0.1}, "dropout"),
        ({"lengths": True}, "lengths"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"value_width": 0}, "64 and 0"),
        ({"plan": plan(Causal(), 63, 100, 2)}, "63 queries"),
        ({"plan": plan(PATTERNS["bigbird"], 136, 136, HEADS["bigbird"])}, "blocks are 16 × 16"),
        ({"block": 32}, "blocks are 32 × 32; it takes 64 × 64 and 128 × 128"),
        ({"plan": plan(~Dilated(8, step=3), 136, 136, 2)}, "Columns"),
        ({"plan": plan(Causal(), 136, 200, 2), "block": 64, "within": True}, "136 queries and 200 keys"),
        ({"plan": PARTLY, "width": 128}, None),
        ({"plan": PARTLY, "width": 128, "backward": True}, None),
        ({"device": CPU}, "compute capability 9.0"),
    ],
)
def test_it_says_what_it_does_not_do(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], reason: str | None
) -> None:
    monkeypatch.setattr(requirements, "capability", lambda d: (9, 0) if d.type == "cuda" else None)
    settings = dict(plan=plan(Causal(), 100, 100, 2), device=torch.device("cuda:0"), dtype=torch.bfloat16, batch=1)
    settings |= dict(key_heads=2, width=64, value_width=64, softcap=0.0, dropout=0.0, has_sinks=True)
    said = HOPPER.refuses(Problem(**(settings | changed)))
    assert said is None if reason is None else reason in (said or "")


def test_other_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "capability", lambda _: (8, 0))
    settings = dict(plan=plan(Causal(), 100, 100, 2), device=torch.device("cuda:0"), dtype=torch.bfloat16, batch=1)
    settings |= dict(key_heads=2, width=64, value_width=64, softcap=0.0, dropout=0.0, has_sinks=True)
    assert "compute capability 9.0" in (HOPPER.refuses(Problem(**settings)) or "")


def views() -> dict[str, Tensor]:
    """Tensors [2, 3, 5, 16] or smaller, as users have them."""
    room = torch.randn(2, 5, 3, 48, dtype=torch.bfloat16)
    return {
        "contiguous": torch.randn(2, 3, 5, 16, dtype=torch.bfloat16),
        "heads inside": room[..., 16:32].transpose(1, 2),
        "one head of an odd stride": torch.randn(2, 80, dtype=torch.bfloat16).as_strided((2, 1, 5, 16), (80, 7, 16, 1)),
        "one batch row of stride 0": torch.randn(3, 5, 16, dtype=torch.bfloat16).as_strided(
            (1, 3, 5, 16), (0, 80, 16, 1)
        ),
        "expanded": torch.randn(1, 1, 5, 16, dtype=torch.bfloat16).expand(2, 3, 5, 16),
        "odd rows": torch.randn(2, 3, 5, 17, dtype=torch.bfloat16)[..., :16],
        "odd start": torch.randn(2, 3, 5, 24, dtype=torch.bfloat16)[..., 1:17],
        "columns apart": torch.randn(2, 3, 5, 32, dtype=torch.bfloat16)[..., ::2],
    }


@pytest.mark.parametrize("name", views())
def test_the_copy_engine_gets_what_it_can_address(name: str) -> None:
    x = views()[name]
    made = descriptors.addressable(x)
    assert torch.equal(made, x)
    assert made.data_ptr() % 16 == 0 and made.stride(3) == 1
    assert all(stride > 0 and stride % 8 == 0 for stride in made.stride()[:3])
    copied = made.data_ptr() != x.data_ptr()
    assert copied == (name in ("expanded", "odd rows", "odd start", "columns apart"))
    TensorDescriptor(made, list(made.shape), list(made.stride()), *descriptors._tile(64, 64, x.dtype))


class Stream:
    """Remembers whom it waits for."""

    def __init__(self) -> None:
        self.waited: list[object] = []

    def record_event(self) -> str:
        return "begun"

    wait_event = wait_stream = lambda self, other: self.waited.append(other)


def test_streams_are_joined_where_a_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    here, aside = Stream(), Stream()
    current: list[Stream] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: here)
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    monkeypatch.setattr(backend, "_streams", lambda *_: (aside,))
    done = []

    def fails() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        backend._side_by_side([fails, lambda: done.append(1)], CPU)
    assert done == [1] and aside.waited == ["begun"] and here.waited == [aside]
    assert current == [aside, here]
    with pytest.raises(MemoryError):
        backend._side_by_side([lambda: done.append(1), fails], CPU)
    assert current[2:] == [aside, here] and here.waited == [aside, aside]
    here.waited.clear()
    backend._side_by_side([lambda: done.append(2), lambda: done.append(3)], CPU, apart=False)
    assert done == [1, 2, 3] and not here.waited
