"""The operators: `opcheck`, torch.compile, operation counts, and a pattern that crosses as text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gossamer import SparseAttention, SparseAttentionConfig, attend, repeats
from gossamer.ops import attend as ops
from gossamer.patterns import Causal, Pattern, PerHead, RandomBlocks, Strided, Tokens, Window, parse, presets
from gossamer.plan import plan

PATTERN = Causal() & (Window(6) | Strided(4))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tensors(length: int = 20, keys: int | None = None, groups: int = 2, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(length)
    shapes = (2, 4, length, 8), (2, groups, keys or length, 8), (2, groups, keys or length, 6)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def arguments(
    q: Tensor, k: Tensor, v: Tensor, sinks: bool = False, seed: bool = False, pattern: Pattern = PATTERN,
    lengths: Tensor | None = None, within: Tensor | None = None,
):  # fmt: skip
    logits = torch.randn(4, dtype=q.dtype, requires_grad=True) if sinks else None
    drawn, dropout = (torch.tensor([5]), 0.3) if seed else (None, 0.0)
    return q, k, v, logits, drawn, lengths, within, pattern.spec, 0.25, 2.0 if sinks else 0.0, dropout, None


CASES = {
    "plain": lambda: arguments(*tensors(dtype=torch.float32)),
    "every option": lambda: arguments(*tensors(dtype=torch.float32), sinks=True, seed=True),
    "half precision": lambda: arguments(*tensors(dtype=torch.bfloat16)),
    "float64, grouped, uneven": lambda: arguments(*tensors(9, keys=30, groups=1, dtype=torch.float64)),
    "transposed": lambda: arguments(*(x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in tensors())),
    "a head group each": lambda: arguments(*tensors(), pattern=presets.local_global(3, 1, 4, 3)),
    "lengths": lambda: arguments(*tensors(3, keys=30), lengths=torch.tensor([30, 2])),
    "within": lambda: arguments(*tensors(), within=torch.tensor([[0, 20], [3, 11]], dtype=torch.int32)),
    "nothing": lambda: arguments(*tensors(), pattern=Causal() & ~Causal()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_operator_keeps_torch_s_rules(case: str) -> None:
    torch.library.opcheck(torch.ops.gossamer.attend, CASES[case]())


@pytest.mark.parametrize("case", CASES)
def test_the_backward_operator_keeps_torch_s_rules(case: str) -> None:
    q, k, v, sinks, *settings = (x.detach() if isinstance(x, Tensor) else x for x in CASES[case]())
    out, lse = torch.ops.gossamer.attend(q, k, v, sinks, *settings)
    for grad_lse in (None, torch.randn_like(lse)):
        given = torch.randn_like(out), grad_lse, q, k, v, out, lse, sinks, *settings
        torch.library.opcheck(torch.ops.gossamer.attend_backward, given)


def inside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, Causal() & (Window(6) | Strided(4)))


def outside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, PATTERN)


def both_outputs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out, lse = attend(q * 2, k, v, RandomBlocks(4, 1, 0) | Window(3), softcap=5.0, return_lse=True)
    return out * lse.exp()[..., None]


def from_text(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern = parse("Causal() & Window(5)")) -> Tensor:  # noqa: B008
    return attend(q, k, v, pattern)


def with_lengths(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, PATTERN, lengths=torch.tensor([20, 7]))


def with_ends(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, PATTERN, within=torch.tensor([[3, 20], [0, 7]], dtype=torch.int32))


@pytest.mark.parametrize(
    "function",
    [inside, outside, both_outputs, from_text, with_lengths, with_ends],
    ids=lambda function: function.__name__,
)
def test_compiled_whole_it_is_the_same(function: Callable[..., Tensor]) -> None:
    q, k, v = tensors()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    _check_alike(compiled, function, (q, k, v))


def _check_alike(compiled: Callable, eager: Callable, inputs: tuple[Tensor, ...]) -> None:
    found, right = compiled(*inputs), eager(*inputs)
    torch.testing.assert_close(found, right)
    pairs = zip(*(torch.autograd.grad(x.square().sum(), inputs) for x in (found, right)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def test_lengths_may_vary_without_compiling_each() -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, example: list) -> Callable:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(outside, fullgraph=True, backend=counting, dynamic=True)
    for length in (20, 33, 64, 65, 7):
        q, k, v = tensors(length)
        torch.testing.assert_close(compiled(q, k, v), outside(q, k, v))
    assert graphs <= 2


def test_a_pattern_that_grows_with_the_length_compiles() -> None:
    """As `SparseAttention` makes it: the window follows the length of the input."""

    def adaptive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, Causal() & Window(max(2, q.shape[2] // 4)))

    compiled = torch.compile(adaptive, fullgraph=True, backend="aot_eager")
    for length in (20, 33, 40):
        _check_alike(compiled, adaptive, tuple(tensors(length)))


FOLLOWED = [
    [Window(3), Window(4), Causal(), Causal() & Window(3), Causal() & Window(4), ~Causal(), Window(3)],
    [Tokens([1]), Tokens([2]), Tokens([2, 9]), *(PerHead([(Window(2), n), (Causal(), 4 - n)]) for n in (1, 2, 3))],
]


@pytest.mark.parametrize("patterns", FOLLOWED, ids=["settings", "tuples"])
def test_a_compiled_function_follows_the_pattern_it_is_given(patterns: list[Pattern]) -> None:
    compiled = torch.compile(from_text, fullgraph=True, backend="aot_eager")
    q, k, v = tensors()
    for pattern in patterns:
        torch.testing.assert_close(compiled(q, k, v, pattern), from_text(q, k, v, pattern))


def test_a_compiled_layer_follows_its_configuration() -> None:
    layer = SparseAttention(SparseAttentionConfig(2, 1, 4, min_window_size=1), width=24).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 30, 24, dtype=torch.float64)
    for window in (4, 9):
        layer.config = SparseAttentionConfig(2, 1, window, adaptive_window=False)
        torch.testing.assert_close(compiled(x), layer(x))


def test_dropout_compiles_and_draws_anew() -> None:
    compiled = torch.compile(lambda q, k, v: attend(q, k, v, PATTERN, dropout=0.5), fullgraph=True, backend="aot_eager")
    q, k, v = tensors()
    torch.manual_seed(0)
    first, second = compiled(q, k, v), compiled(q, k, v)
    torch.manual_seed(0)
    assert torch.equal(first, compiled(q, k, v))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["scale", "softcap", "dropout"])
def test_settings_may_be_arguments_of_a_compiled_function(name: str) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor, setting: float) -> Tensor:
        return attend(q, k, v, PATTERN, **{name: setting})

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    inputs = tensors()
    for setting in (0.25, 0.5, 0.75):
        torch.manual_seed(0)
        expected = call(*inputs, setting)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(*inputs, setting), expected)


def test_autocast_compiles() -> None:
    def half(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attend(q, k, v, PATTERN).float()

    inputs = tuple(tensors(dtype=torch.float32))
    _check_alike(torch.compile(half, fullgraph=True, backend="aot_eager"), half, inputs)


def test_a_bad_call_is_refused_under_compile_too() -> None:
    q, k, v = tensors()
    compiled = torch.compile(lambda q: attend(q, k, v, PATTERN, softcap=-1.0), backend="eager")
    with pytest.raises(ValueError, match="softcap is -1"):
        compiled(q)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_same() -> None:
    compiled = torch.compile(both_outputs, fullgraph=True)
    for length in (20, 33):
        _check_alike(compiled, both_outputs, tuple(tensors(length)))


def test_an_exported_program_needs_no_pattern_object() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, PATTERN)

    q, k, v = (x.detach() for x in tensors())
    exported = torch.export.export(Model(), (q, k, v))
    (call,) = (node for node in exported.graph.nodes if "gossamer.attend" in str(node.target))
    assert PATTERN.spec in call.args
    assert torch.equal(exported.module()(q, k, v), attend(q, k, v, PATTERN))


def test_operations_are_counted_by_visible_pairs() -> None:
    q, k, v = tensors(64)
    pairs = plan(PATTERN, 64, 64, 4).pairs
    assert pairs == 4 * PATTERN.dense_mask(64).sum()
    with FlopCounterMode(display=False) as counter:
        out = attend(q, k, v, PATTERN)
    forward = 2 * 2 * pairs * (8 + 6)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * pairs * (3 * 8 + 2 * 6)


def test_meta_tensors_give_shapes() -> None:
    with torch.device("meta"):
        q, k, v = torch.empty(2, 4, 9, 8), torch.empty(2, 2, 12, 8), torch.empty(2, 2, 12, 6)
        out, lse = attend(q, k, v, PATTERN, return_lse=True)
    assert out.shape == (2, 4, 9, 6) and lse.shape == (2, 4, 9) and out.device.type == "meta"


@pytest.mark.parametrize("inside", [False, True], ids=["heads outside", "heads inside"])
def test_results_lie_in_memory_as_the_fakes_promise(inside: bool) -> None:
    def heads(width: int, device: str) -> torch.Tensor:
        x = torch.randn(2, 5, 3, width, device=device).transpose(1, 2)
        return (x if inside else x.contiguous()).requires_grad_()

    strides = []
    for device in ("cpu", "meta"):
        inputs = [heads(width, device) for width in (8, 8, 4)]
        out = attend(*inputs, Causal())
        results = (out, *torch.autograd.grad(out.sum(), inputs))
        strides.append([x.stride() for x in results])
    assert strides[0] == strides[1]
    assert all((x.transpose(1, 2) if inside else x).is_contiguous() for x in results)


def test_what_comes_back_to_the_lse_of_a_query_that_sees_nothing_harms_nobody() -> None:
    q, k, v = (torch.randn(1, 1, length, 8, requires_grad=True) for length in (6, 4, 4))  # two queries see nothing
    out, lse = attend(q, k, v, Causal(), return_lse=True)
    empty = lse == -torch.inf
    assert empty.sum() == 2
    given = torch.randn_like(lse).masked_fill(empty, torch.nan)
    found = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), given), retain_graph=True)
    right = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), given.masked_fill(empty, 0.0)))
    for gradient, other in zip(found, right, strict=True):
        assert torch.equal(gradient, other)


def test_sinks_of_any_strides() -> None:
    q = torch.randn(1, 4, 9, 8)
    logits, table = torch.randn(1), torch.randn(4, 3)
    for sinks in (logits.expand(4), table[:, 1]):
        assert torch.equal(attend(q, q, q, Causal(), sinks=sinks), attend(q, q, q, Causal(), sinks=sinks.clone()))


class Marked(Tensor):
    """A subclass that asks for nothing."""


def through_operator(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> bool:
    """Whether the dispatcher sees the operator in a call."""
    seen = []
    library = ops.torch.ops.gossamer

    class Spy:
        def __getattr__(self, name: str) -> object:
            seen.append(name)
            return getattr(library, name)

    monkeypatch.setattr(ops, "torch", SpiedTorch(Spy()))
    call()
    return bool(seen)


class SpiedTorch:
    """torch, but for its operators."""

    def __init__(self, gossamer: object):
        self.ops = type("Ops", (), {"gossamer": gossamer})

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def calls() -> dict[str, tuple[bool, Callable[[], object]]]:
    """Whether the operator has to be seen, and a call."""
    q, k, v = (x.detach() for x in tensors())
    negative = torch.complex(k, k).conj().imag
    leaves = tensors()

    def within(context: object) -> Callable[[], object]:
        def call() -> object:
            with context:
                return attend(q, k, v, PATTERN)

        return call

    return {
        "plain": (False, lambda: attend(q, k, v, PATTERN)),
        "parameters": (False, lambda: attend(torch.nn.Parameter(q), k, v, PATTERN)),
        "gradients": (False, lambda: attend(*leaves, PATTERN).sum().backward()),
        "no gradients asked for": (False, within(torch.no_grad())),
        "inference": (False, within(torch.inference_mode())),
        "autocast": (False, within(torch.autocast("cpu", dtype=torch.bfloat16))),
        "operations are counted": (True, within(FlopCounterMode(display=False))),
        "a default device": (True, within(torch.device("cpu"))),
        "a profiler": (True, within(torch.profiler.profile())),
        "a subclass": (True, lambda: attend(q, k.as_subclass(Marked), v, PATTERN)),
        "meta tensors": (True, lambda: attend(q.to("meta"), k.to("meta"), v.to("meta"), PATTERN)),
        "negative views": (True, lambda: attend(q, negative, v, PATTERN)),
        "second gradients": (
            True,
            lambda: torch.autograd.grad(attend(*leaves, PATTERN).sum(), leaves, create_graph=True),
        ),
        "tracing": (True, lambda: torch.jit.trace(outside, (q, k, v), check_trace=False)),
        "a transform": (True, lambda: torch.func.functionalize(outside)(q, k, v)),
    }


@pytest.mark.parametrize("name", calls())
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("repeated", [False, True], ids=["first call", "repeated call"])
def test_the_operator_is_left_out_where_nobody_would_see_it(
    monkeypatch: pytest.MonkeyPatch, name: str, repeated: bool
) -> None:
    monkeypatch.setattr(repeats, "_WAYS", {})
    if repeated:
        for known in ("plain", "gradients", name):
            calls()[known][1]()
        assert repeats._WAYS
    expected, call = calls()[name]
    assert through_operator(monkeypatch, call) == expected


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"dropout": 0.3}, {"sinks": torch.ones(4)}], ids=str)
def test_without_the_operator_it_is_the_same(monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    """Through it, past it, and by the way that a first call has left."""
    inputs = tensors(dtype=torch.float32)
    options = {name: x.float() if isinstance(x, Tensor) else x for name, x in options.items()}
    monkeypatch.setattr(repeats, "_WAYS", {})

    def results() -> list[Tensor]:
        torch.manual_seed(0)
        out, lse = attend(*inputs, PATTERN, return_lse=True, **options)
        with torch.no_grad():
            alone = attend(*inputs, PATTERN, **({} if "dropout" in options else options))
        return [out, lse, alone, *torch.autograd.grad((out * lse[..., None]).sum(), inputs)]

    for module in (ops, repeats):
        monkeypatch.setattr(module, "unobserved", lambda _: False)
    through = results()
    assert not repeats._WAYS
    for module in (ops, repeats):
        monkeypatch.setattr(module, "unobserved", lambda _: True)
    first = results()
    assert len(repeats._WAYS) == (2 if not options.keys() & {"dropout", "sinks"} else "dropout" in options)
    for found in (first, results()):
        for x, y in zip(found, through, strict=True):
            assert torch.equal(x, y) and x.stride() == y.stride()
