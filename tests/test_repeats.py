"""A repeated call takes the way that the first one left, and no other call does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer import attend, repeats
from gossamer.kernels import Choice
from gossamer.ops import choice
from gossamer.patterns import Causal, Strided, Window

PATTERN = Causal() & (Window(6) | Strided(4))


class Repeating:
    """A backend that says how a call is repeated: here by minus ones, so that it can be told from a first call."""

    name = "repeating"
    refuses = staticmethod(lambda problem: None)

    def __init__(self) -> None:
        self.aligned = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return q.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_zeros(q.shape[:-1])

    def again(self, *_: object, lse: bool) -> Callable:
        def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None] | None:
            out, rows = (x - 1 for x in self.forward(q, k, v))
            return (out, rows if lse else None) if self.aligned else None

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repeating]:
    made = Repeating()
    monkeypatch.setattr(choice, "choose", lambda *_: Choice(made, {}))
    monkeypatch.setattr(repeats, "_WAYS", {})
    choice.choice.cache_clear()
    yield made
    choice.choice.cache_clear()


def tensors(length: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (2, 4, length, 8), (2, 2, length, 8), (2, 2, length, 6)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return q, k, v


def repeated(q: Tensor, k: Tensor, v: Tensor, **options: object) -> bool:
    return bool((attend(q, k, v, PATTERN, **options) == -1).all())


def kinds_of_tensors() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    q, k, v = tensors()
    return {
        "strides": (q.transpose(1, 2).contiguous().transpose(1, 2), k, v),
        "a key's strides": (q, k.transpose(1, 2).contiguous().transpose(1, 2), v),
        "a value's width": (q, k, torch.cat([v, v], -1)),
        "a batch": (q[:1], k[:1], v[:1]),
        "a dtype": (q.float(), k.float(), v.float()),
        "a class": (torch.nn.Parameter(q, requires_grad=False), k, v),
        "a want of gradients": (q, k, v.clone().requires_grad_()),
    }


@pytest.mark.parametrize("change", kinds_of_tensors())
def test_tensors_of_another_kind_have_another_way(backend: Repeating, change: str) -> None:
    q, k, v = tensors()
    assert [repeated(q, k, v) for _ in range(3)] == [False, True, True]
    assert repeated(*tensors())
    assert [repeated(*kinds_of_tensors()[change]) for _ in range(2)] == [False, True]
    assert repeated(q, k, v)


@pytest.mark.parametrize("options", [{"scale": 0.5}, {"softcap": 1.0}, {"return_lse": True}, {"backend": "x"}], ids=str)
def test_other_settings_have_another_way(backend: Repeating, options: dict[str, object]) -> None:
    q, k, v = tensors()
    repeated(q, k, v)

    def output() -> Tensor:
        found = attend(q, k, v, PATTERN, **options)
        return found[0] if "return_lse" in options else found

    assert [int(output().min()) for _ in range(2)] == [0, -1]


@pytest.mark.parametrize("name", ["sinks", "lengths", "dropout"])
def test_a_call_with_more_to_read_leaves_no_way(backend: Repeating, name: str) -> None:
    q, k, v = tensors()
    options = {"sinks": torch.zeros(4, dtype=q.dtype), "lengths": torch.tensor([3, 4]), "dropout": 0.5}
    repeated(q, k, v)
    assert not any(repeated(q, k, v, **{name: options[name]}) for _ in range(2))


def test_the_log_sum_exp_is_there_where_somebody_wants_it(backend: Repeating) -> None:
    q, k, v = tensors()
    for _ in range(2):
        out, lse = attend(q, k, v, PATTERN, return_lse=True)
    assert bool((lse == -1).all()) and lse.shape == q.shape[:3]
    leaf = q.clone().requires_grad_()
    for _ in range(2):
        out = attend(leaf, k, v, PATTERN)
    saved = out.grad_fn.saved_tensors
    assert bool((out == -1).all()) and bool((saved[4] == -1).all()) and saved[4].shape == q.shape[:3]


def test_a_repeated_call_has_gradients_where_they_are_enabled(backend: Repeating) -> None:
    q, k, v = tensors()
    leaf = q.clone().requires_grad_()
    assert [repeated(leaf, k, v) for _ in range(2)] == [False, True]
    assert attend(leaf, k, v, PATTERN).requires_grad
    with torch.no_grad():
        assert repeated(leaf, k, v) and not attend(leaf, k, v, PATTERN).requires_grad
    with torch.inference_mode():
        assert [repeated(leaf, k, v) for _ in range(2)] == [False, True]


def test_what_fits_a_known_kind_in_part_is_checked(backend: Repeating) -> None:
    q, k, v = tensors()
    repeated(q, k, v)
    wrong = (q, k.half(), v), (q, k[:, :, 1:], v), (q[0], k, v), (q[0, 0, 0, 0], k, v), (q, k, v.numpy()), (None, k, v)
    for given in wrong:
        with pytest.raises(ValueError):
            attend(*given, PATTERN)
    for given in ((q, k.half(), v), (q, k, v[:1])):  # the operator checks nothing, and what it takes is not remembered
        unchecked = given[0].clone().requires_grad_(), *given[1:], None, None, None, None
        torch.ops.gossamer.attend(*unchecked, PATTERN.spec, given[0].shape[-1] ** -0.5, 0.0, 0.0, None)
        with pytest.raises(ValueError):
            attend(*given, PATTERN)


def test_a_backend_that_cannot_repeat_a_call_is_asked_for_it_anew(backend: Repeating) -> None:
    given = tensors()
    repeated(*given)
    backend.aligned = False
    assert not repeated(*given)
    backend.aligned = True
    assert repeated(*given)


def test_one_tensor_given_twice_is_another_kind(backend: Repeating) -> None:
    x, y = torch.randn(2, 1, 2, 8, 8).unbind()
    for given in ((x, x, x), (x, x, y), (x, y, x), (y, x, x), (x, y, y.clone())):
        assert [repeated(*given) for _ in range(3)] == [False, True, True]
    for wrong in ((x, y.double(), x), (x, x, y.double()), (x, y.double(), y.double())):
        with pytest.raises(ValueError):
            attend(*wrong, PATTERN)
    leaf = x.clone().requires_grad_()
    assert [repeated(leaf, x, x) for _ in range(2)] == [False, True] and repeated(x, x, x)


@pytest.mark.parametrize("told", [1, torch.tensor(True), True], ids=str)
def test_whoever_wants_the_log_sum_exp_may_say_so_as_they_like(backend: Repeating, told: object) -> None:
    q, k, v = tensors()
    first, second = (attend(q, k, v, PATTERN, return_lse=told) for _ in range(2))
    assert [int(x.min()) for x in (*first, *second)] == [0, 0, -1, -1]


class Functions(TorchFunctionMode):
    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        return function(*args, **(kwargs or {}))


OBSERVERS: dict[str, Callable[[], object]] = {
    "a function mode": Functions,
    "a dispatch mode": Operators,
    "a profiler": torch.profiler.profile,
}


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.filterwarnings("ignore")
def test_who_looks_sees_each_call(backend: Repeating, name: str) -> None:
    given = tensors()
    with OBSERVERS[name]():
        assert not any(repeated(*given) for _ in range(2))
    assert [repeated(*given) for _ in range(2)] == [False, True]
    with OBSERVERS[name]():
        assert not repeated(*given)
    assert repeated(*given)


@pytest.mark.filterwarnings("ignore")  # the tracer warns of every shape that is compared
def test_a_transform_and_a_tracer_see_each_call(backend: Repeating) -> None:
    q, k, v = tensors()
    repeated(q, k, v)
    seen = []

    def call(x: Tensor) -> Tensor:
        seen.append(repeated(q, k, v))  # tensors that no transform wraps
        return x

    torch.vmap(call)(torch.ones(3))
    torch.func.grad(lambda x: call(x).sum())(torch.ones(3))
    torch.jit.trace(call, (torch.ones(3),), check_trace=False)
    assert seen == [False] * 3


def test_what_is_kept_is_bounded(backend: Repeating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MOST_KINDS", 4)
    monkeypatch.setattr(repeats, "MOST_ALIKE", 2)
    for length in range(3, 20):
        assert [repeated(*tensors(length)) for _ in range(2)] == [False, True]
        assert len(repeats._WAYS) <= 4
    for width in range(1, 9):
        q, k, _ = tensors()
        v = torch.randn(2, 2, 20, width, dtype=q.dtype)
        assert [repeated(q, k, v) for _ in range(2)] == [False, True]
        assert all(len(ways) <= 2 for ways in repeats._WAYS.values())
