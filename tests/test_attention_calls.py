"""How `attend` is called: what it refuses, dtypes, autocast, patterns that users write, threads, and its log."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from gossamer import Unsupported, attend, explain
from gossamer.kernels import BACKENDS
from gossamer.ops.choice import choice
from gossamer.patterns import Causal, Documents, Pattern, PerHead, RandomBlocks, Strided, Window
from gossamer.patterns.base import KeySet
from gossamer.patterns.parse import _parse, checked_text
from gossamer.plan import _plan, plan
from tests.checks import Setting, check_equals_oracle, check_support, draw, ours
from tests.patterns_list import HEADS, PATTERNS

Q, K = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 12, 8)
CALL = {"q": Q, "k": K, "v": K, "pattern": Causal()}

REFUSED: list[tuple[dict, str]] = [
    ({"q": Q[0]}, r"q has shape \(4, 9, 8\); give \[batch, heads, length, width\]"),
    ({"k": K[..., 0]}, r"k has shape \(2, 2, 12\); give"),
    ({"v": K[None]}, r"v has shape \(1, 2, 2, 12, 8\); give"),
    ({"k": K.double()}, r"k is torch\.float64 on cpu, but q is torch\.float32 on cpu; convert with k\.to"),
    ({"v": K.to("meta")}, r"v is torch\.float32 on meta, but q is .* on cpu; convert with v\.to"),
    ({"k": K[:1], "v": K[:1]}, r"q \(2, 4, 9, 8\), k \(1, 2, 12, 8\) .* do not fit: all share the batch"),
    ({"v": K[:, :1]}, r"do not fit: .* k and v the heads and the length"),
    ({"v": K[:, :, :3]}, r"do not fit: .* k and v the heads and the length"),
    ({"k": K[..., :3]}, r"do not fit: .* q and k the width"),
    ({"q": Q[:, :3]}, r"q has 3 heads and k has 2; the key heads must divide the query heads"),
    ({"k": K[:, :0], "v": K[:, :0]}, r"q has 4 heads and k has 0"),
    ({"q": Q[..., :0], "k": K[..., :0]}, r"q has shape \(2, 4, 9, 0\); give a width of at least 1"),
    ({"sinks": torch.zeros(2)}, r"sinks has shape \(2,\) on cpu; give one logit for each of the 4 query heads"),
    ({"sinks": torch.zeros(4, device="meta")}, r"sinks has shape \(4,\) on meta; .* on cpu"),
    ({"q": Q.to_sparse()}, r"q is torch\.sparse_coo; give a strided tensor: q\.to_dense\(\)"),
    ({"v": torch.nested.nested_tensor([*K[0]], layout=torch.jagged)}, r"v is nested; .* v\.to_padded_tensor"),
    ({"q": Q.numpy()}, r"q is a ndarray; give a torch\.Tensor"),
    ({"v": None}, r"v is a NoneType; give a torch\.Tensor"),
    ({"sinks": [0.0] * 4}, r"sinks is a list; give a torch\.Tensor"),
    ({"lengths": [9, 12]}, r"lengths is a list; give a torch\.Tensor"),
    ({"lengths": torch.ones(3, dtype=torch.int32)}, r"lengths is torch\.int32 of shape \(3,\) .* of the 2 sequences"),
    ({"lengths": torch.ones(2)}, r"lengths is torch\.float32 of shape .* give an int32 or int64"),
    ({"lengths": torch.ones(2, dtype=torch.int32, device="meta")}, r"lengths is .* on meta; .* on cpu"),
    ({"pattern": "Causal()"}, r"pattern is 'Causal\(\)'; give a gossamer pattern"),
    ({"pattern": None}, r"pattern is None; give a gossamer pattern"),
    ({"pattern": torch.ones(9, 12).bool()}, r"(?s)pattern is tensor.*; give a gossamer pattern"),
    ({"pattern": PerHead([(Causal(), 3)])}, r"written for 3 heads, but the input has 4; make .* sum to 4"),
    ({"scale": float("nan")}, r"scale is nan; give a finite number"),
    ({"scale": float("inf")}, r"scale is inf; give a finite number"),
    ({"scale": "0.1"}, r"scale is '0\.1'; give a finite number"),
    ({"scale": 10**400}, r"scale is 10+; give a finite number"),
    ({"scale": torch.ones(2)}, r"scale is tensor\(.*\); give a finite number"),
    ({"scale": np.float32("inf")}, r"scale is .*inf.*; give a finite number"),
    ({"softcap": np.float32(0)}, r"softcap is .*0.*; give a positive number"),
    ({"dropout": np.float32(1)}, r"dropout is .*1.*; give a probability"),
    ({"dropout": torch.ones(2)}, r"dropout is tensor\(.*\); give a probability"),
    ({"dropout": None}, r"dropout is None; give a probability"),
    ({"dropout": "0.1"}, r"dropout is '0\.1'; give a probability"),
    ({"softcap": "1"}, r"softcap is '1'; give a positive number"),
    ({"backend": ["tiled"]}, r"backend is \['tiled'\]; give a backend's name"),
    ({"dropout": 1.0}, r"dropout is 1\.0; give a probability of at least 0 and below 1"),
    ({"dropout": -0.1}, r"dropout is -0\.1; give"),
    ({"dropout": float("nan")}, r"dropout is nan; give"),
    ({"softcap": 0.0}, r"softcap is 0\.0; give a positive number, or None"),
    ({"softcap": -2.0}, r"softcap is -2\.0; give"),
    ({"softcap": float("inf")}, r"softcap is inf; give"),
    ({"backend": "cuda"}, r"backend is 'cuda'; give one of: .*tiled.*, or None"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_bad_call_is_refused_before_anything_runs(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(**(CALL | change))


@pytest.mark.parametrize("call", [attend, partial(attend, backend="tiled", return_lse=True)], ids=["plain", "named"])
@pytest.mark.parametrize("name", ["q", "k", "v", "sinks"])
def test_a_forward_derivative_is_refused_and_not_zero(call: Callable, name: str) -> None:
    """At a first call and at a repeated one, in a transform and in PyTorch's own dual level."""
    given = CALL | {"sinks": torch.zeros(4)} if name == "sinks" else CALL

    def derived(x: Tensor) -> Tensor:
        return call(**(given | {name: x}))

    x = given[name]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"{name} carries a tangent, and attend has no forward-mode derivative"):
            torch.func.jvp(derived, (x,), (torch.ones_like(x),))
        with forward_ad.dual_level():
            derived(x)  # without a tangent it is a call like any other
            with pytest.raises(RuntimeError, match=f"{name} carries a tangent"):
                derived(forward_ad.make_dual(x, torch.ones_like(x)))
        derived(x)


@pytest.mark.parametrize("name", ["grad_out", "grad_lse"])
def test_a_forward_derivative_of_the_gradient_is_refused_and_not_zero(name: str) -> None:
    q = Q.clone().requires_grad_()
    out, lse = attend(q, K, K, Causal(), return_lse=True)
    x = out if name == "grad_out" else lse
    with forward_ad.dual_level():
        torch.autograd.grad(x, q, torch.ones_like(x), retain_graph=True)
        weights = forward_ad.make_dual(torch.ones_like(x), torch.ones_like(x))
        with pytest.raises(RuntimeError, match=f"{name} carries a tangent"):
            torch.autograd.grad((x * weights).sum(), q)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
def test_a_nested_tensor_is_refused_after_a_good_call_too(name: str) -> None:
    given = CALL | {"v": K.clone()}
    attend(**given)
    nested = torch.nested.nested_tensor([*given[name]])
    with pytest.raises(ValueError, match=f"{name} is nested; give a strided tensor"):
        attend(**(given | {name: nested}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_what_no_backend_computes_says_why(dtype: torch.dtype) -> None:
    x = torch.ones(1, 1, 2, 2, dtype=dtype)
    for backend in (None, "tiled"):
        with pytest.raises(Unsupported, match=rf"tiled: inputs are {dtype}; it computes float64, float32"):
            attend(x, x, x, Causal(), backend=backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_outputs_have_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    q = Q.to(dtype).requires_grad_()
    out, lse = attend(q, q, q, Causal(), return_lse=True)
    assert out.dtype == dtype and out.shape == q.shape
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and lse.shape == q.shape[:3]
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert gradient.dtype == dtype


def test_sinks_may_be_kept_in_float32() -> None:
    q, sinks = Q.bfloat16(), torch.randn(4, requires_grad=True)
    out = attend(q, q, q, Causal(), sinks=sinks)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.float().sum(), sinks)[0].dtype == torch.float32


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_the_dtype_it_asks_for(half: torch.dtype) -> None:
    """The very result of converting by hand; gradients come back in the dtype of the inputs."""
    q, k, v = (x.clone().requires_grad_() for x in (Q, K, K))
    with torch.autocast("cpu", dtype=half):
        out = attend(q, k.to(half), v, Causal())
    assert out.dtype == half
    assert torch.equal(out, attend(q.to(half), k.to(half), v.to(half), Causal()))
    right = torch.autograd.grad(out.float().square().sum(), (q, k, v), retain_graph=True)
    with torch.autocast("cpu", dtype=half):  # a backward should run outside, and is the same inside
        inside = torch.autograd.grad(out.float().square().sum(), (q, k, v))
        assert attend(Q.double(), K.double(), K.double(), Causal()).dtype == torch.float64
    for a, b in zip(inside, right, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_the_default_scale_is_that_of_the_width() -> None:
    assert torch.equal(attend(Q, K, K, Causal()), attend(Q, K, K, Causal(), scale=8**-0.5))
    assert not torch.equal(attend(Q, K, K, Causal()), attend(Q, K, K, Causal(), scale=0.3))


def test_an_empty_batch_is_an_empty_result() -> None:
    q = torch.randn(0, 2, 5, 4, requires_grad=True)
    out, lse = attend(q, q, q, Causal(), return_lse=True)
    assert out.shape == (0, 2, 5, 4) and lse.shape == (0, 2, 5)
    out.sum().backward()
    assert q.grad.shape == q.shape


def test_only_some_inputs_may_need_gradients() -> None:
    problem = draw(Causal(), Setting(queries=12, sinks=True))
    whole = [x.clone().requires_grad_() for x in problem.inputs.values()]
    right = torch.autograd.grad(ours(replace(problem, **dict(zip(problem.inputs, whole, strict=True))))[0].sum(), whole)
    for name, gradient in zip(problem.inputs, right, strict=True):
        one = problem.inputs[name].clone().requires_grad_()
        out, lse = ours(replace(problem, **{name: one}))
        assert torch.equal(torch.autograd.grad(out.sum(), one, retain_graph=True)[0], gradient)
        assert torch.autograd.grad(lse.sum(), one, allow_unused=True)[0].isfinite().all()


def test_gradients_of_gradients_are_refused() -> None:
    q = Q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attend(q, q, q, Causal()).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no gradients of gradients; .* gossamer\.reference"):
        gradient.sum().backward()


def test_dropout_is_drawn_from_torch_s_generator() -> None:
    call = CALL | {"dropout": 0.5}
    torch.manual_seed(3)
    first, second = attend(**call), attend(**call)
    torch.manual_seed(3)
    assert torch.equal(first, attend(**call))
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    assert torch.equal(attend(**CALL), attend(**CALL, dropout=0.0))
    assert torch.equal(state, torch.get_rng_state()), "attention without dropout drew a number"


def test_dropout_leaves_the_log_sum_exp_and_the_mean() -> None:
    q, k = torch.zeros(1, 1, 200, 4), torch.randn(1, 1, 200, 4)
    everything = Causal() | Causal().T
    out, lse = attend(q, k, torch.ones_like(k), everything, dropout=0.25, return_lse=True)
    assert torch.equal(lse, attend(q, k, k, everything, return_lse=True)[1])
    assert abs(out.mean().item() - 1) < 5 * (0.25 / 0.75 / 200 / 200) ** 0.5


def test_a_recomputed_forward_drops_the_same_pairs() -> None:
    q = torch.randn(1, 2, 40, 8, requires_grad=True)

    def block(q: torch.Tensor) -> torch.Tensor:
        return attend(q, q, q, Causal() & Window(9), dropout=0.4)

    gradients = []
    for call in (block, lambda q: checkpoint(block, q, use_reentrant=False)):
        torch.manual_seed(1)
        gradients += torch.autograd.grad(call(q).square().sum(), q)
    assert torch.equal(*gradients)


@dataclass(frozen=True)
class Factors(Pattern):
    """A query sees its position's divisors and multiples: two methods, no closed form."""

    least: int

    def allows(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        small, large = np.minimum(q, k), np.maximum(q, k)
        return (small >= self.least) & (large % np.maximum(small, 1) == 0)

    def bounds(self, q_first: np.ndarray, q_last: np.ndarray, k_first: np.ndarray, k_last: np.ndarray):
        return (q_last >= self.least) & (k_last >= self.least), np.zeros(np.shape(q_first), bool)


@pytest.mark.parametrize("pattern", [
    Factors(2), Causal() & Factors(1), Window(5) | Factors(3), ~Factors(2).T & Causal(),
    PerHead([(Factors(4), 1), (Causal(), 1)]),
], ids=str)  # fmt: skip
def test_a_pattern_that_a_user_writes_needs_nothing_else(pattern: Pattern) -> None:
    check_support(pattern, Setting(queries=100, dtype=torch.float32))
    check_equals_oracle(draw(pattern, Setting(queries=90, keys=100, sinks=True)))


def first_keys(count: int) -> type[Pattern]:
    """A class that carries the same name each time, as when a notebook's cell is run again."""

    @dataclass(frozen=True)
    class FirstKeys(KeySet):
        def holds(self, positions: np.ndarray) -> np.ndarray:
            return positions < count

        def between(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
            return np.maximum(np.minimum(last, count - 1) - first + 1, 0)

    return FirstKeys


def check_a_class_that_is_defined_again() -> None:
    """The new class runs as it reads now; patterns of the old one are refused, for their text means the new one."""
    x = torch.zeros(1, 1, 8, 4)
    for count in (2, 5):
        made = first_keys(count)()
        lse = attend(x, x, x, made, return_lse=True)[1]
        assert torch.allclose(lse, torch.tensor(float(count)).log()), "a stale pattern ran"
    old = first_keys(1)()
    first_keys(3)
    with pytest.raises(ValueError, match=r"FirstKeys\(\) does not read back .* whose name no other pattern has"):
        attend(x, x, x, old)


def test_a_class_that_is_defined_again_meets_no_stale_plan() -> None:
    check_a_class_that_is_defined_again()


def test_a_class_whose_text_says_too_little_is_refused() -> None:
    class Bare(Factors):
        """No dataclass of its own, so that its text keeps nothing of `reach`."""

        def __init__(self, reach: int):
            object.__setattr__(self, "reach", reach)
            object.__setattr__(self, "least", 1)

    with pytest.raises(ValueError, match="Bare"):
        attend(Q, Q, Q, Bare(3))


def check_changing_lengths() -> None:
    """Lengths and patterns that alternate never meet each other's plan."""
    for _ in range(2):
        for length in (20, 33, 21):
            for pattern in (Causal() & Window(4), Causal() & Window(5), Window(4)):
                check_equals_oracle(draw(pattern, Setting(queries=length, width=4)))


def test_changing_lengths_and_patterns() -> None:
    check_changing_lengths()


def test_eight_threads_on_cold_caches() -> None:
    problems = [draw(PATTERNS[name], Setting(heads=HEADS[name], dtype=torch.float32)) for name in PATTERNS]
    right = [ours(problem)[0] for problem in problems]
    for kept in (plan, _plan, _parse, choice):
        kept.cache_clear()
    start, wrong = threading.Barrier(8), []

    def work(number: int) -> None:
        start.wait()
        for i in range(len(problems)):
            at = (i + 4 * number) % len(problems)
            if not torch.equal(ours(problems[at])[0], right[at]):
                wrong.append((number, at))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pattern_keeps_its_text_and_stays_the_value_it_is() -> None:
    pattern = Causal() & Window(7)
    attend(Q, K, K, pattern)
    assert checked_text(pattern) is checked_text(pattern)
    assert pattern == Causal() & Window(7) and hash(pattern) == hash(Causal() & Window(7))
    assert copy.deepcopy(pattern) == pickle.loads(pickle.dumps(pattern)) == pattern
    assert replace(pattern, right=Window(8)).spec == "Causal() & Window(size=8)"


def test_explain_says_what_runs_and_why() -> None:
    pattern = Causal() & (Window(3) | Strided(4))
    explanation = explain(Q, K, K, pattern, softcap=3.0)
    assert explanation.plan is plan(pattern, 9, 12, 4)
    assert explanation.forward.backend.name == explanation.backward.backend.name == "tiled"
    assert str(explanation).startswith(str(explanation.plan))
    assert "forward runs on tiled\n  not dense: it is PyTorch's flash attention on CUDA" in str(explanation)
    assert all(f"\n  not {backend.name}: " in str(explanation) for backend in BACKENDS[:-1])


def test_explain_takes_meta_tensors_and_refusals() -> None:
    x = torch.ones(1, 1, 2, 2, dtype=torch.int64, device="meta")
    text = str(explain(x, x, x, Causal(), backend="tiled"))
    assert "forward runs on none\n  not tiled: inputs are torch.int64" in text
    with pytest.raises(ValueError, match="softcap is -1"):
        explain(x, x, x, Causal(), softcap=-1.0)


@pytest.mark.parametrize("change", [change for change, _ in REFUSED if not change.keys() & {"scale"}], ids=str)
def test_explain_refuses_what_attend_refuses(change: dict) -> None:
    with pytest.raises(ValueError) as right:
        attend(**(CALL | change))
    with pytest.raises(ValueError) as found:
        explain(**(CALL | change))
    assert str(found.value) == str(right.value)


def test_debug_says_what_was_planned_and_which_kernel_ran(caplog: pytest.LogCaptureFixture) -> None:
    pattern = Causal() & (Window(3) | Strided(4) | RandomBlocks(2, 1, 0)) & Documents([5, 7])
    with caplog.at_level(logging.DEBUG, "gossamer"):
        attend(Q, K, K, pattern)
    text = "\n".join(caplog.messages)
    assert "planned 9 queries × 12 keys, 4 heads" in text and "Band: " in text
    assert f"attend (2, 4, 9, 8): {str(pattern)[:50]}" in text
    assert "runs on tiled\n  not dense: it is PyTorch's" in text


def test_without_debug_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gossamer"):
        attend(**CALL)
    assert not caplog.messages
