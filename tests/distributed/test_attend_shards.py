"""Attention of a sequence in shards is that of the sequence: outputs, gradients, bytes.

Where there are as many GPUs as ranks, ranks have a GPU each and meet through NCCL; elsewhere they are processes on the
CPU. Each start of processes goes through many cases: starting them takes longer than a case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gossamer import attend
from gossamer.ops import attend as operators
from gossamer.ops.choice import Call, choice
from gossamer.parallel import (
    Shards,
    acceptance,
    attend_by_heads,
    attend_shards,
    course,
    gathered_before,
    keys,
    reads,
    rows,
)
from gossamer.patterns import Causal, Dilated, Documents, Packed, Pattern, Sinks, Strided, Tokens, Window
from tests.distributed.launch import run_ranks
from tests.patterns_list import HEADS, LENGTH, PATTERNS

AttendShards = Callable[..., Tensor]

SIZES = {2: ((68, 68), (5, 131)), 4: ((34, 34, 34, 34), (50, 1, 80, 5))}
"""Tokens of each rank: even, and as uneven as may be."""

MORE = {
    "window of several shards": Causal() & Window(100),
    "strided behind a window": Causal() & (Window(8) | Strided(7)),
    "few rows": Causal() & (Window(8) | Tokens([3, 50]) | Tokens([77, 130]).T),
    "packed with sinks": Packed(Causal() & (Window(8) | Sinks(2)), [30, 60, 46]),
    "two-sided dilated": Dilated(4, step=2) | Dilated(4, step=2).T,
    "documents that end early": Causal() & Window(12) & Documents([30, 60]),
}
EVERY = PATTERNS | MORE


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() != "gloo" else "cpu")


def _drawn(heads: int, key_heads: int, dtype: torch.dtype, width: int = 8, length: int = LENGTH) -> list[Tensor]:
    """q, k, v and the gradient of the output, of the whole sequence: the same in every process."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, width), (key_heads, width), (key_heads, width + 4), (heads, width + 4))
    drawn = (torch.randn(2, h, length, d, generator=generator, dtype=torch.float64) for h, d in shapes)
    return [x.to(_device(), dtype) for x in drawn]


def _gradients(
    over: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor], grad_out: Tensor
) -> list[Tensor]:
    """The output, and the gradients of the inputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = over(*inputs)
    out.backward(grad_out)
    return [out.detach(), *(x.grad for x in inputs)]  # type: ignore[misc]


def _error(
    pattern: Pattern, sizes: tuple[int, ...], over: AttendShards, heads: int, *, key_heads: int, dtype: torch.dtype
) -> float:
    """The largest difference of output or gradient from those of the whole sequence in float64, as a share."""
    shards = Shards.of(sizes)
    *inputs, grad_out = _drawn(heads, key_heads, dtype)
    own = slice(shards.first, shards.stop)
    whole = partial(attend, pattern=pattern, backend="tiled")
    right = _gradients(whole, [x.double() for x in inputs], grad_out.double())
    found = _gradients(
        lambda q, k, v: over(q, k, v, pattern, shards), [x[:, :, own] for x in inputs], grad_out[:, :, own]
    )
    scale = max(x.abs().max().item() for x in right) or 1.0
    return max((a.double() - b[:, :, own]).abs().max().item() for a, b in zip(found, right, strict=True)) / scale


def _errors(sizes: tuple[int, ...], over: AttendShards, dtype: torch.dtype) -> dict[str, float]:
    """For every pattern; with as many key heads as heads, and with fewer where they can be."""
    found = {}
    for name, pattern in EVERY.items():
        heads = 2 * HEADS.get(name, 2) if not pattern.head_cuts else pattern.head_cuts[-1]
        if over is attend_by_heads and heads % len(sizes):
            continue
        few = heads // 2 if heads % 2 == 0 and (heads // 2) % len(sizes) == 0 else heads
        for key_heads in {heads, few if over is attend_by_heads else max(heads // 2, 1) if heads % 2 == 0 else 1}:
            error = _error(pattern, sizes, over, heads, key_heads=key_heads, dtype=dtype)
            found[f"{name}, {key_heads} of {heads}"] = error
    return found


BOUND = {torch.float64: 1e-13, torch.float32: 4e-6}
"""Largest difference, as a share of the largest number: some roundings of sums of as many terms as a row has."""


@pytest.mark.parametrize(
    ("sizes", "over", "dtype"),
    [
        (SIZES[2][0], attend_shards, torch.float64),
        (SIZES[4][1], attend_shards, torch.float64),
        (SIZES[4][0], attend_shards, torch.float32),
        (SIZES[2][1], attend_by_heads, torch.float64),
    ],
)
def test_every_pattern_is_that_of_the_whole_sequence(
    sizes: tuple[int, ...], over: AttendShards, dtype: torch.dtype
) -> None:
    found = run_ranks(_errors, len(sizes), sizes, over, dtype)
    assert len(found[0]) > 20
    wrong = {
        (rank, name): error
        for rank, errors in enumerate(found)
        for name, error in errors.items()
        if not error <= BOUND[dtype]
    }
    assert not wrong


def _whatever_else() -> dict[str, object]:
    """Small things that need processes: all of them in one start."""
    return {
        "bytes": _bytes(),
        "dropout": _dropout(),
        "gathered": _gathered(),
        "refused": _refusals(),
        "repeated": _repeated(),
        "leak": _leak(),
        "second": _second_gradients(),
        "unforeseen": _unforeseen(),
    }


def _bytes() -> dict[str, list[int]]:
    """Bytes that a forward and its backward send, for sequences of three lengths."""
    patterns = {
        "window": Causal() & Window(17),
        "strided": Causal() & (Window(17) | Strided(10)),
        "row": Causal() & (Window(17) | Tokens([100]).T),
    }
    sent = {}
    for name, pattern in patterns.items():
        sent[name] = []
        for length in (400, 800, 1600):
            shards = Shards.even(length)
            *inputs, grad_out = _drawn(2, 1, torch.float32, length=length)
            own = slice(shards.first, shards.stop)
            _gradients(
                partial(attend_shards, pattern=pattern, shards=shards),
                [x[:, :, own] for x in inputs],
                grad_out[:, :, own],
            )
            sent[name].append(shards.traffic.nbytes)
    return sent


def _dropout() -> float:
    """dv · v is out · grad_out where forward and backward drop the same pairs: the output is linear in v."""
    shards = Shards.even(LENGTH)
    own = slice(shards.first, shards.stop)
    *inputs, grad_out = (x[:, :, own] for x in _drawn(2, 2, torch.float64))
    pattern = Causal() & (Window(30) | Tokens([5]).T | Strided(9))
    out, *_, dv = _gradients(partial(attend_shards, pattern=pattern, shards=shards, dropout=0.5), inputs, grad_out)
    sums = torch.stack([(dv * inputs[2]).sum(), (out * grad_out).sum()])
    dist.all_reduce(sums)
    return ((sums[0] - sums[1]) / sums[1]).abs().item()


def _gathered() -> float:
    shards = Shards.of([50, 86])
    whole = [torch.randn(2, 3, LENGTH, 4, dtype=torch.float64), torch.randn(2, LENGTH, 5, dtype=torch.float64)]
    for x in whole:
        dist.broadcast(x, 0)
    whole = [x.to(_device()) for x in whole]
    own = [x[..., shards.first : shards.stop, :].clone().requires_grad_() for x in whole]
    found = gathered_before(own, shards)
    wrong = max((a - b[..., : shards.stop, :]).abs().max().item() for a, b in zip(found, whole, strict=True))
    sum((x * (shards.rank + 1)).sum() for x in found).backward()  # type: ignore[union-attr]
    expected = float(sum(rank + 1 for rank in range(shards.rank, 2)))
    return wrong + max((x.grad - expected).abs().max().item() for x in own)  # type: ignore[operator]


def _refusals() -> list[str]:
    said = []
    q, k, v, _ = _drawn(3, 3, torch.float32)
    shards = Shards.even(LENGTH)
    own = [x[:, :, shards.first : shards.stop] for x in (q, k, v)]
    for wrong in (
        lambda: attend_shards(q, k, v, Causal(), shards),
        lambda: attend_by_heads(q, k, v, Causal(), shards),
        lambda: Shards.even(1),
        lambda: Shards.of([LENGTH]),
        lambda: attend_shards(*own, Causal(), shards, dropout=1.5),
        lambda: attend_shards(*own, Causal(), shards, softcap=-1.0),
        lambda: attend_by_heads(*own, Causal(), shards, scale=torch.nan),
        lambda: attend_by_heads(q, *own[1:], Causal(), shards),
    ):
        try:
            wrong()
        except ValueError as error:
            said.append(str(error))
    return said


def _second_gradients() -> int:
    """How many refuse gradients of gradients, which the others' part would be missing in."""
    shards, refused = Shards.even(LENGTH), 0
    x = torch.randn(1, 2, shards.stop - shards.first, 8, device=_device(), requires_grad=True)
    for over in (
        lambda: attend_shards(x, x, x, Causal() & Window(9), shards),
        lambda: gathered_before([x], shards)[0],
    ):
        (first,) = torch.autograd.grad(over().square().sum(), x, create_graph=True)
        try:
            first.sum().backward()
        except RuntimeError:
            refused += 1
    return refused


def _unforeseen() -> list[Call]:
    """Calls of a backend that nobody asked about before anything travelled."""
    made: dict[str, list[Call]] = {"asked": [], "run": []}
    shards = Shards.even(LENGTH)
    own = [x[:, :, shards.first : shards.stop] for x in _drawn(4, 2, torch.float32)]
    with ExitStack() as stack:
        for module, calls in ((acceptance, made["asked"]), (operators, made["run"])):
            spy = partial(lambda calls, *inputs: (calls.append(inputs[0]), choice(*inputs))[1], calls)
            stack.enter_context(mock.patch.object(module, "choice", spy))
        for pattern in (*MORE.values(), Causal() & Sinks(2)):
            for attends in (attend_shards, attend_by_heads):
                over = partial(attends, pattern=pattern, shards=shards, backend="tiled")
                _gradients(over, own[:3], own[3])
    assert len(made["run"]) > 4 * len(MORE)
    return [call for call in made["run"] if call not in made["asked"]]


def _repeated() -> bool:
    """The same bits each time."""
    shards = Shards.even(LENGTH)
    *inputs, grad_out = (x[:, :, shards.first : shards.stop] for x in _drawn(4, 2, torch.float32))
    over = partial(attend_shards, pattern=Causal() & (Window(30) | Strided(9) | Tokens([70]).T), shards=shards)
    runs = [_gradients(over, inputs, grad_out) for _ in range(5)]
    return all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


def _leak() -> bool:
    """What a later token is changes no earlier output, bit by bit, in any process."""
    shards, changed = Shards.even(LENGTH), 100
    own = slice(shards.first, shards.stop)
    pattern = Causal() & (Window(30) | Strided(9) | Tokens([70, 120]).T)
    q, k, v, _ = _drawn(2, 2, torch.float32)
    before = attend_shards(*(x[:, :, own] for x in (q, k, v)), pattern, shards)
    for x in (q, k, v):
        x[:, :, changed:] += 1.0
    after = attend_shards(*(x[:, :, own] for x in (q, k, v)), pattern, shards)
    earlier = max(changed - shards.first, 0)
    differs = shards.stop <= changed or not torch.equal(before[:, :, earlier:], after[:, :, earlier:])
    return torch.equal(before[:, :, :earlier], after[:, :, :earlier]) and differs


def test_bytes_dropout_leaks_and_refusals() -> None:
    found = run_ranks(_whatever_else, 2)
    width, wide = 8, 12
    halo = 16 * (width + wide) * 2 * 4  # keys and values, of two sequences, in float32
    sent = [each["bytes"] for each in found]
    assert [each["window"] for each in sent] == [[halo] * 3] * 2  # keys one way, their gradients the other
    first, second, third = sent[0]["strided"]
    assert second > first and (third - second) == 2 * (second - first)
    assert sent[0]["row"][0] == sent[0]["row"][2]
    for rank, each in enumerate(found):
        assert each["dropout"] < 1e-13
        assert each["gathered"] == 0.0
        assert each["repeated"] and each["leak"]
        assert len(each["refused"]) == 8, each["refused"]
        assert each["second"] == 2
        assert each["unforeseen"] == []
        assert f"give the {LENGTH // 2} that shards" in each["refused"][0], rank


def _faults() -> Iterator[tuple[str, list[mock._patch]]]:
    """Each of them breaks one thing that only several processes do."""
    keys_of, side = reads._keys_of, keys.Come.merge

    def one_less(clause, queries, length):
        found, *among = keys_of(clause, queries, length)
        return (found[1:] if queries.start else found), *among

    def average(self, q, out, lse):
        for place, softmax in self.sides:
            at = slice(None), self.part.heads.queries, place.queries
            more, _ = softmax.forward(q[at], self.k[:, :, place.keys], self.v[:, :, place.keys])
            out[at] = (out[at] + more) / 2

    yield "sound", []
    yield "a window of one key less", [mock.patch.object(reads, "_keys_of", one_less)]
    yield "gradients that stay away", [mock.patch.object(keys, "_add_up", lambda *_: None)]
    yield "averages for a softmax", [mock.patch.object(keys.Come, "merge", average)]
    yield "the log-sum-exp of a part", [mock.patch.object(keys.Come, "merge", _with_own_norm(side))]
    yield "gradients that are waited for and lost", [mock.patch.object(keys.Come, "apart", _lost(keys.Come.apart))]
    yield "rows that are their own part alone", [mock.patch.object(rows.Guests, "forward", lambda *_: None)]


def _with_own_norm(merge):
    def merged(self, q, out, lse):
        merge(self, q, out, lse.clone())

    return merged


def _lost(apart):
    def found(self, dx):
        others, own = apart(self, dx)
        return torch.zeros_like(others), own

    return found


def _found_out() -> dict[str, bool]:
    """Whether the check of one of two patterns that together have everything fails, for each fault."""
    found = {}
    for name, patches in _faults():
        reads.reads.cache_clear()
        course.course.cache_clear()
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            sent, waited_for = Causal() & (Window(20) | Tokens([100]).T), Causal() & (Window(20) | Strided(9))
            error = max(
                _error(pattern, (68, 68), attend_shards, 2, key_heads=2, dtype=torch.float64)
                for pattern in (sent, waited_for)
            )
        worst = torch.tensor(error)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        found[name] = not worst <= BOUND[torch.float64]
    return found


def test_planted_faults_are_found() -> None:
    for found in run_ranks(_found_out, 2):
        assert not found.pop("sound")
        assert len(found) == 6 and all(found.values()), found
