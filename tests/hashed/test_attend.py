"""`attend_hashed` on the CPU: its definition, its limits, what it refuses, and faults that its checks find."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gossamer import Unsupported
from gossamer.hashed import attend_hashed
from gossamer.selectors import LSH, rounds
from tests.hashed_checks import CASES, Case, check_definition, check_repeatable, check_support, draw, ours, run
from tests.planting import Fault


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_definition(name: str) -> None:
    check_definition(CASES[name], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["paper", "padded, trax", "all alone"])
def test_other_dtypes_err_no_more_than_the_definition_in_them(name: str, dtype: torch.dtype) -> None:
    check_definition(CASES[name], dtype)


@pytest.mark.parametrize("name", CASES)
def test_exactly_those_that_meet_are_seen(name: str) -> None:
    check_support(CASES[name])


def test_results_repeat_to_the_bit() -> None:
    check_repeatable(CASES["paper"], torch.float32, "cpu")


def test_slabs_of_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(CASES["trax, both ways"])
    whole = run(ours, problem)
    monkeypatch.setattr("gossamer.kernels.tiled.hashed.MOST_SCORES", 1)
    for name, x in run(ours, problem).items():
        torch.testing.assert_close(x, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 2, 20), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("name", ["paper", "trax", "wraps"])
def test_nothing_is_attended_to_in_nothing(name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, 8, requires_grad=True)
    out = attend_hashed(x, x, torch.zeros(*shape[:2], 3, shape[2], dtype=torch.int64), CASES[name].lsh)
    out.sum().backward()
    assert out.shape == x.grad.shape == x.shape


def full_attention(x: Tensor, v: Tensor, lsh: LSH) -> Tensor:
    """Shared-QK attention of all to all that came before, to oneself only where nobody did."""
    keys = x / (x.square().sum(-1, keepdim=True) + x.shape[-1] * lsh.epsilon).sqrt()
    scores = x @ keys.mT
    own = torch.eye(x.shape[2], dtype=torch.bool)
    return torch.softmax(torch.where(own, -1e5, scores).masked_fill(~torch.ones_like(own).tril(), -torch.inf), -1) @ v


@pytest.mark.parametrize("lsh", [LSH.paper(3, 40), LSH.trax(3, 40)], ids=["paper", "trax"])
def test_one_bucket_in_one_chunk_is_full_attention(lsh: LSH) -> None:
    x, v = torch.randn(2, 1, 2, 40, 8, dtype=torch.float64).unbind()
    found = attend_hashed(x, v, torch.zeros(1, 2, 3, 40, dtype=torch.int64), lsh)
    torch.testing.assert_close(found, full_attention(x, v, lsh), rtol=1e-12, atol=1e-12)


def test_enough_look_back_over_one_bucket_is_full_attention() -> None:
    lsh = replace(LSH.paper(2, 8), before=4)
    x, v = torch.randn(2, 1, 2, 40, 8, dtype=torch.float64).unbind()
    found = attend_hashed(x, v, torch.zeros(1, 2, 2, 40, dtype=torch.int64), lsh)
    torch.testing.assert_close(found, full_attention(x, v, lsh), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["paper", "paper, short chunks", "trax", "trax, a short last chunk", "wraps"])
def test_the_past_does_not_know_the_future(name: str) -> None:
    """With the buckets as they are: a causal hash of the future would be another thing to ask."""
    problem = draw(CASES[name])
    cut = 33
    x, v = problem.x.clone(), problem.v.clone()
    x[:, :, cut:] += torch.randn_like(x[:, :, cut:])
    v[:, :, cut:] = torch.nan_to_num(v[:, :, cut:]) + 5.0
    before, after = ours(problem, problem.x, problem.v)[0], ours(problem, x, v)[0]
    assert torch.equal(before[:, :, :cut], after[:, :, :cut])
    assert not torch.equal(before[:, :, cut:], after[:, :, cut:])


@pytest.mark.parametrize("name", ["padded, paper", "padded, trax"])
def test_padding_goes_nowhere(name: str) -> None:
    """Whatever it holds, results, zeros and gradients are the same."""
    problem = draw(CASES[name])
    position, (first, last) = torch.arange(problem.case.length), problem.within.T[..., None]
    real = ((position >= first) & (position < last))[:, None, :, None]
    junk = replace(
        problem,
        x=torch.where(real, problem.x, 100.0),
        v=torch.where(real, problem.v, -100.0),
        buckets=torch.where(real[..., 0][:, :, None], problem.buckets, 0),
    )
    found, other = run(ours, problem), run(ours, junk)
    for result in found:
        assert torch.equal(found[result], other[result])
        outside = found[result].unsqueeze(-1) if found[result].dim() == 3 else found[result]
        assert not outside.masked_select(~real).any()


def test_padding_leaves_the_paper_s_attention_as_it_is_without() -> None:
    problem = draw(Case(LSH.paper(3, 16), within=((9, 59),), batch=1))
    out, lse = ours(problem, problem.x, problem.v)
    part = replace(problem, buckets=problem.buckets[..., 9:59], within=None)
    alone, alone_lse = ours(part, problem.x[:, :, 9:59], problem.v[:, :, 9:59])
    torch.testing.assert_close(out[:, :, 9:59], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse[:, :, 9:59], alone_lse, rtol=1e-12, atol=1e-12)


def test_a_chunk_looks_across_the_edge_of_its_round_as_it_is_told() -> None:
    """Token 0 stands first in both rounds; what it sees beyond is the end of nothing, of its round, of the other."""
    buckets = torch.stack([torch.arange(8), torch.arange(8).roll(3)]).view(1, 1, 2, 8)
    x, v = torch.randn(1, 1, 8, 4), torch.eye(8).view(1, 1, 8, 8)
    seen = {}
    for edge in ("stops", "wraps", "crosses"):
        lsh = LSH(2, 2, causal=False, other_buckets=True, repeats=True, edge=edge)
        rounds_seen = [attend_hashed(x, v, buckets[:, :, :1], lsh), attend_hashed(x, v, buckets, lsh)]
        seen[edge] = [set(out[0, 0, 0].nonzero().flatten().tolist()) for out in rounds_seen]
    # the second round is 3 4 5 6 | … by its buckets 3 … 7 0 1 2: tokens 3, 4 | 5, 6 | 7, 0 | 1, 2
    assert seen["stops"] == [{1}, {1, 5, 6, 7}]
    assert seen["wraps"] == [{1, 6, 7}, {1, 5, 6, 7}]
    assert seen["crosses"] == [{1, 6, 7}, {1, 2, 5, 6, 7}]


def test_a_token_that_sees_others_does_not_see_itself() -> None:
    x, v = torch.randn(1, 1, 24, 4) * 30, torch.eye(24).view(1, 1, 24, 24)
    out = attend_hashed(x, v, torch.zeros(1, 1, 2, 24, dtype=torch.int64), LSH.paper(2, 8))[0, 0]
    assert out[0, 0] == 1.0 and not out.diagonal()[1:].any()


WRONG = {
    "x is [1, 2, 20, 4] and v [1, 2, 19, 4]": lambda x, b: (x, x[:, :, :19], b),
    "x is torch.float32 and v torch.float64": lambda x, b: (x, x.double(), b),
    "x is torch.int64 and v torch.int64": lambda x, b: (x.long(), x.long(), b),
    "buckets is torch.int32 [1, 2, 3, 20]; give int64 [1, 2, rounds, 20]": lambda x, b: (x, x, b.int()),
    "buckets is torch.int64 [1, 2, 3, 19]": lambda x, b: (x, x, b[..., 1:]),
    "within is torch.int32 [2, 2]; give int32 [1, 2]": lambda x, b: (x, x, b, torch.zeros(2, 2, dtype=torch.int32)),
    "v is on meta and x on cpu": lambda x, b: (x, x.to("meta"), b),
    "x is a list; give a torch.Tensor": lambda x, b: ([1.0], x, b),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_refused(said: str) -> None:
    x, v, buckets, *within = WRONG[said](torch.randn(1, 2, 20, 4), torch.randint(3, (1, 2, 3, 20)))
    with pytest.raises(ValueError) as raised:
        attend_hashed(x, v, buckets, LSH.trax(3, 4), within=within[0] if within else None)
    assert str(raised.value).startswith(said)


def test_backends_say_why_not() -> None:
    x, buckets = torch.randn(1, 2, 20, 4), torch.randint(3, (1, 2, 3, 20))
    with pytest.raises(Unsupported, match=r"triton: tensors are on cpu; it needs a CUDA or ROCm GPU"):
        attend_hashed(x, x, buckets, LSH.trax(3, 4), backend="triton")
    with pytest.raises(Unsupported, match=r"triton: inputs are torch\.float64; it computes float32"):
        attend_hashed(x.double(), x.double(), buckets, LSH.trax(3, 4), backend="triton")
    with pytest.raises(ValueError, match="backend is 'hopper'; give one of: triton, tiled"):
        attend_hashed(x, x, buckets, LSH.trax(3, 4), backend="hopper")


FAULTS = {
    "meetings count as often as they happen": ("if self.times is not None:", "if False:", "paper"),
    "the first chunk meets the last": (
        "return found.masked_fill(",
        "return (lambda *_: found)(",
        "stops",
    ),
    "a token sees itself": ("torch.where(self.itself, ALONE, product)", "product", "trax"),
    "a token meets itself in every round": ("turn == 0 and step", "step", "all alone"),
    "the future is seen": ("visible &= key <= query", "visible &= key <= query + 1", "trax"),
    "rounds overwrite one another": ("total = torch.logaddexp(lse[rows], added)", "total = added", "paper"),
    "keys have the gradient of vectors of any length": ("(dk - key * (dk * key).sum(-1, keepdim=True))", "dk", "trax"),
    "what does not exist is seen": ("if rounds.count is not None:", "if False:", "padded, trax"),
}


def faulty(sound: str, wrong: str, folder: Path) -> ModuleType:
    """The torch road with one piece of its text replaced."""
    name, path = "gossamer.kernels.tiled.faulty", folder / "faulty.py"
    path.write_text(Fault("tiled.hashed", sound, wrong, "").source)
    spec = spec_from_file_location(name, path)
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sound, wrong, case = FAULTS[name]
    monkeypatch.setattr("gossamer.ops.lsh.ROADS", (faulty(sound, wrong, tmp_path).TILED_HASHED,))
    with pytest.raises(AssertionError, match="error"):
        check_definition(CASES[case], torch.float64)


def test_an_order_that_is_not_undone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "inverse", lambda order: order)
    with pytest.raises(AssertionError, match="error"):
        check_definition(CASES["paper"], torch.float64)
