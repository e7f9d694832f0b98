"""`attend_runs`: each query sees its run of keys, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gossamer import attend
from gossamer.kernels import Unsupported
from gossamer.patterns import Causal, Documents, Window
from gossamer.runs import attend_runs
from tests.checks import Problem, Setting, check_equals_oracle, check_error, check_repeatable, draw, ours, run

N = 100
USUAL = Setting(heads=4, key_heads=2, queries=N, width=8, batch=3)


def rising(batch: int, most: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, most + 1, (batch, N), generator=generator).sort(-1)[0].int()


def drawn_runs(batch: int = 3) -> tuple[Tensor, Tensor]:
    """Runs of any lengths, some of them empty."""
    start = rising(batch, N, 0)
    return start, torch.maximum(start, rising(batch, N, 1))


def chunks(size: int, back: int = 0) -> tuple[Tensor, Tensor]:
    """Each query sees its own chunk and as many before it."""
    first = (torch.arange(N) // size * size)[None].int()
    return (first - back * size).clamp(min=0), (first + size).clamp(max=N)


def with_runs(runs: tuple[Tensor, Tensor], **changes: object) -> Problem:
    return replace(draw(Causal(), replace(USUAL, **changes)), runs=runs)


RUNS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "any": drawn_runs,
    "shared by all": lambda: drawn_runs(1),
    "chunks": lambda: chunks(16),
    "chunks that look back": lambda: chunks(7, back=1),
    "everything": lambda: (torch.zeros(1, N).int(), torch.full((1, N), N).int()),
    "nothing": lambda: (torch.full((3, N), 9).int(), torch.full((3, N), 9).int()),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_is_the_definition(name: str) -> None:
    check_equals_oracle(with_runs(RUNS[name]()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_its_error_is_that_of_plain_attention(dtype: torch.dtype) -> None:
    check_error(with_runs(drawn_runs(), dtype=dtype))


def test_exactly_the_runs_are_seen() -> None:
    """No tolerance: with scores of zero and the identity as values, the output is the matrix of probabilities."""
    start, stop = drawn_runs(1)
    q, v = torch.zeros(1, 1, N, N, dtype=torch.float64, requires_grad=True), torch.eye(N, dtype=torch.float64)
    v = v[None, None].clone().requires_grad_()
    out, lse = attend_runs(q, torch.zeros_like(q), v, start, stop, return_lse=True)
    key = torch.arange(N)
    mask = (key >= start[0, :, None]) & (key < stop[0, :, None])
    assert torch.equal(out[0, 0] > 0, mask)
    assert torch.equal(lse[0, 0] == -torch.inf, start[0] == stop[0])
    (dv,) = torch.autograd.grad(out, v, torch.eye(N, dtype=torch.float64)[None, None])
    assert torch.equal(dv[0, 0] > 0, mask.mT)


def test_documents_and_windows_are_runs_too() -> None:
    q, k, v = draw(Causal(), USUAL).inputs.values()
    position = torch.arange(N)[None].int()
    window = (position - 8).clamp(min=0), position + 1
    torch.testing.assert_close(attend_runs(q, k, v, *window), attend(q, k, v, Causal() & Window(9)))
    ends = torch.tensor([0, 30, 41, 100])
    number = torch.searchsorted(ends, position[0], right=True)
    packed = (ends[number - 1][None].int(), ends[number][None].int())
    torch.testing.assert_close(attend_runs(q, k, v, *packed), attend(q, k, v, Documents([30, 11, 59])))


def test_keys_outside_every_run_may_be_nan() -> None:
    problem = with_runs(tuple(end.clamp(20, 70) for end in drawn_runs()))
    k, v = problem.k.clone(), problem.v.clone()
    for x in (k, v):
        x[:, :, :20] = x[:, :, 70:] = torch.nan
    found, right = run(ours, replace(problem, k=k, v=v)), run(ours, problem)
    for name, x in right.items():
        assert torch.equal(found[name], x), name


def test_fewer_queries_than_keys() -> None:
    q, k, v = (x.clone() for x in draw(Causal(), USUAL).inputs.values())
    start, stop = (end[:, 60:] for end in drawn_runs())
    found = attend_runs(q[:, :, 60:], k, v, start, stop)
    torch.testing.assert_close(found, attend_runs(q, k, v, *drawn_runs())[:, :, 60:])


def test_it_repeats_to_the_bit() -> None:
    check_repeatable(with_runs(drawn_runs(), dtype=torch.float32))


def test_runs_of_any_strides() -> None:
    q, k, v = draw(Causal(), USUAL).inputs.values()
    start, stop = drawn_runs()
    both = torch.stack([start, stop], -1)
    assert torch.equal(attend_runs(q, k, v, both[..., 0], both[..., 1]), attend_runs(q, k, v, start, stop))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("runs", RUNS)
def test_the_operator_keeps_torch_s_rules(runs: str, dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in draw(Causal(), replace(USUAL, dtype=dtype)).inputs.values())
    start, stop = RUNS[runs]()
    torch.library.opcheck(torch.ops.gossamer.attend_runs, (q, k, v, start, stop, 0.3, None))
    out, lse = (x.detach() for x in torch.ops.gossamer.attend_runs(q, k, v, start, stop, 0.3, None))
    for grad_lse in (None, torch.randn_like(lse)):
        given = torch.randn_like(out), grad_lse, *(x.detach() for x in (q, k, v)), out, lse, start, stop, 0.3, None
        torch.library.opcheck(torch.ops.gossamer.attend_runs_backward, given)


def test_compiled_whole_it_is_the_same() -> None:
    def sorted_chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = (torch.arange(q.shape[2]) // 8 * 8).to(torch.int32)[None]
        out, lse = attend_runs(q, k, v, first, (first + 8).clamp(max=q.shape[2]), return_lse=True)
        return out * lse[..., None]

    torch.compiler.reset()
    compiled = torch.compile(sorted_chunks, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in draw(Causal(), USUAL).inputs.values()]
    found, right = compiled(*inputs), sorted_chunks(*inputs)
    torch.testing.assert_close(found, right)
    pairs = zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (found, right)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)
    torch.compiler.reset()


def test_operations_are_counted_at_most() -> None:
    q, k, v = draw(Causal(), USUAL).inputs.values()
    with FlopCounterMode(display=False) as counter:
        attend_runs(q, k, v, *drawn_runs())
    assert counter.get_total_flops() == 2 * 3 * 4 * N * N * (8 + 8)


def test_there_are_no_second_gradients() -> None:
    q, k, v = (x.requires_grad_() for x in draw(Causal(), USUAL).inputs.values())
    (dq,) = torch.autograd.grad(attend_runs(q, k, v, *drawn_runs()).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attend_runs has no gradients of gradients"):
        dq.sum().backward()


def test_autocast_is_the_dtype_it_asks_for() -> None:
    q, k, v = draw(Causal(), replace(USUAL, dtype=torch.float32)).inputs.values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend_runs(q, k, v, *drawn_runs()).dtype == torch.bfloat16


GOOD = torch.zeros(2, 4, dtype=torch.int32)
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"start": GOOD.long()}, r"start is torch\.int64 of shape \(2, 4\) on cpu; give int32 \[2, 4\], or \[1, 4\]"),
    ({"stop": GOOD[:, :3]}, r"stop is torch\.int32 of shape \(2, 3\)"),
    ({"stop": GOOD[0]}, r"stop is torch\.int32 of shape \(4,\)"),
    ({"start": GOOD.to("meta")}, r"on meta; give .* on cpu"),
    ({"start": [0, 0]}, r"start is a list; give a torch\.Tensor"),
    ({"q": torch.zeros(2, 1, 4)}, r"q has shape \(2, 1, 4\); give \[batch, heads, length, width\]"),
    ({"k": torch.zeros(1, 1, 4, 4)}, r"do not fit"),
    ({"scale": float("nan")}, r"scale is nan; give a finite number"),
    ({"backend": 3}, r"backend is 3; give a backend's name"),
    ({"backend": "none such"}, r"backend is 'none such'; give one of"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_does_not_fit_is_refused(wrong: dict[str, object], message: str) -> None:
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=message):
        attend_runs(**({"q": x, "k": x, "v": x, "start": GOOD, "stop": GOOD} | wrong))


def test_a_backend_that_cannot_says_why() -> None:
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(Unsupported, match="hopper: it needs a GPU"):
        attend_runs(x, x, x, GOOD, GOOD, backend="hopper")


def test_runs_that_begin_one_key_too_late_are_found() -> None:
    """A fault, planted: one sequence's runs lose their first key."""
    start, stop = chunks(16)
    start, stop = start.repeat(3, 1), stop.repeat(3, 1)
    problem = with_runs((start, stop))
    late = start.clone()
    late[1] += 1

    def faulty(problem: Problem) -> tuple[Tensor, Tensor]:
        return attend_runs(problem.q, problem.k, problem.v, late, stop, return_lse=True)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr("tests.checks.ours", faulty)
        check_equals_oracle(problem)
