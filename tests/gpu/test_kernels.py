"""Every backend by name, on every kind of problem that it accepts: right, exact, repeatable, and clean of its memory.

Sizes are few, and each is used again and again: a new one costs a compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gossamer import Unsupported, attend, explain
from gossamer.kernels import BACKENDS
from gossamer.kernels.dropout import keep_factor
from gossamer.patterns import (
    Causal,
    Dilated,
    Documents,
    Pattern,
    PerHead,
    RandomBlocks,
    Sinks,
    Strided,
    Tokens,
    Window,
    presets,
)
from gossamer.reference import visible
from tests.checks import (
    Problem,
    Setting,
    check_agreement,
    check_empty_rows,
    check_error,
    check_no_leak,
    check_support,
    draw,
    ours,
    run,
)

pytestmark = pytest.mark.gpu

LENGTH, HEADS = 424, 4
NAMES = [backend.name for backend in BACKENDS]
KERNELS = [name for name in NAMES if name not in ("dense", "decode", "tiled")]

CAUSAL: dict[str, Pattern] = {
    "band": Causal() & Window(100),
    "narrow band": Causal() & Window(5),
    "long band": Causal(),
    "dilated band": Causal() & Dilated(20, step=3),
    "packed band": Causal() & Window(100) & Documents([3, 100, 1, 320]),
    "columns": Causal() & Strided(7),
    "band and columns": Causal() & (Window(64) | Sinks(4)),
    "heads apart": presets.local_global(3, 1, window=40, every=10),
}
PATTERNS: dict[str, Pattern] = CAUSAL | {
    "band on both sides": Window(50),
    "band of the future": ~Causal() & Window(70),
    "everything": Causal() | Causal().T,
    "rows": Causal() & Window(30) | Tokens([0, 200, 327]).T,
    "band, columns and rows": presets.longformer(64, (0, 31, 190)),
    "blocks": RandomBlocks(64, 2, seed=0),
    "small blocks": RandomBlocks(16, 2, seed=0) | Window(5),
    "blocks of heads": PerHead([(RandomBlocks(64, 2, seed) & ~Window(9), 1) for seed in range(HEADS)]),
    "bigbird": presets.bigbird(64, random=2),
    "nothing": Causal() & ~Causal(),
}

every_kernel = pytest.mark.parametrize("backend", KERNELS)
every_pattern = pytest.mark.parametrize("name", PATTERNS)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What a kernel allocates and forgets to write is NaN."""
    torch.cuda.empty_cache()
    small = [torch.full((2**18,), 255, dtype=torch.uint8, device="cuda") for _ in range(64)]
    large = [torch.full((2**26,), 255, dtype=torch.uint8, device="cuda") for _ in range(4)]
    del small, large
    yield


def setting(**changes: object) -> Setting:
    given = {"heads": HEADS, "queries": LENGTH, "width": 64, "device": "cuda", "dtype": torch.bfloat16}
    return Setting(**(given | changes))


def drawn(pattern: Pattern, **changes: object) -> Problem:
    """The problem, or a skip with the backend's reason where it refuses, forward or backward."""
    problem = draw(pattern, setting(**changes))
    options = {"sinks": problem.sinks, "softcap": problem.softcap, "within": problem.within, "backend": problem.backend}
    explanation = explain(problem.q, problem.k, problem.v, pattern, **options)
    for choice in (explanation.forward, explanation.backward):
        if choice.backend is None:
            pytest.skip("; ".join(choice.refusals.values()))
    return problem


@every_kernel
@every_pattern
def test_the_error_is_that_of_plain_attention(backend: str, name: str) -> None:
    check_error(drawn(PATTERNS[name], batch=2, backend=backend))


@every_kernel
@every_pattern
def test_exactly_the_visible_pairs_are_seen(backend: str, name: str) -> None:
    drawn(PATTERNS[name], backend=backend)
    check_support(PATTERNS[name], setting(backend=backend))


@every_kernel
@pytest.mark.parametrize("name", CAUSAL)
def test_the_future_does_not_leak(backend: str, name: str) -> None:
    drawn(CAUSAL[name], backend=backend)
    check_no_leak(CAUSAL[name], setting(backend=backend), times=(0, 63, 64, 200))


@every_kernel
@pytest.mark.parametrize("key_heads", [1, 2])
def test_heads_share_keys(backend: str, key_heads: int) -> None:
    for name in ("band", "band and columns", "heads apart", "band, columns and rows", "blocks of heads"):
        check_error(drawn(PATTERNS[name], batch=2, key_heads=key_heads, backend=backend))


@every_kernel
@pytest.mark.parametrize("name", ["band of the future", "nothing", "packed band", "rows"])
def test_a_query_that_sees_nothing_gives_nothing(backend: str, name: str) -> None:
    pattern = PATTERNS[name] & ~Window(2) if name in ("packed band", "rows") else PATTERNS[name]
    drawn(pattern, backend=backend)
    check_empty_rows(pattern, setting(backend=backend))


OPTIONS = {
    "sinks": {"sinks": True},
    "soft cap": {"softcap": 2.0},
    "float16": {"dtype": torch.float16},
    "float32": {"dtype": torch.float32},
    "fewer queries": {"queries": 100},
    "more queries": {"keys": 100},
    "one scale": {"scale": 0.5},
    "wide numbers": {"magnitude": 30.0},
    "growing scores": {"magnitude": 4.0},
    "growing scores, float16 × 128": {"magnitude": 4.0, "dtype": torch.float16, "width": 128},
    "zeros": {"magnitude": 0.0},
    **{f"width {width}": {"width": width} for width in (16, 40, 80, 128, 256, 300, 512)},
    "width 512, every option": {"width": 512, "dtype": torch.float16, "sinks": True, "softcap": 2.0, "key_heads": 1},
    "narrow values": {"width": 128, "value_width": 64},
    "wide values": {"value_width": 128},
}


@every_kernel
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(backend: str, option: str) -> None:
    for name in ("band", "band and columns", "blocks of heads"):
        check_error(drawn(PATTERNS[name], batch=2, backend=backend, **OPTIONS[option]))


MANY = {
    "causal": (Causal(), {}),
    "long band": (Causal() & Window(500), {}),
    "shared keys × 128": (Causal(), {"key_heads": 2, "width": 128}),
    "band and columns": (Causal() & (Window(200) | Strided(5)), {}),
    "band and columns, shared keys × 128": (Causal() & (Window(200) | Strided(5)), {"key_heads": 1, "width": 128}),
}


@pytest.mark.parametrize("magnitude", [1.0, 4.0])
@pytest.mark.parametrize("name", MANY)
def test_programs_take_many_turns(name: str, magnitude: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings wrap, programs take one item after another, and the last section of heads is smaller than the others."""
    pytest.importorskip("triton")
    from gossamer.kernels.hopper import launch

    monkeypatch.setattr(launch, "CACHED", 3 << 19)  # of 48 heads, five at a time
    pattern, changes = MANY[name]
    check_error(drawn(pattern, batch=12, queries=1096, backend="hopper", magnitude=magnitude, **changes))


@pytest.mark.parametrize("name", ["band", "long band", "columns", "band and columns", "heads apart", "rows", "bigbird"])
def test_backends_agree(name: str) -> None:
    problem = draw(PATTERNS[name], setting(batch=2))
    check_agreement(problem, accepting(problem))


def accepting(problem: Problem) -> list[str]:
    """The backends that take the problem, forward and backward."""
    found = []
    for name in NAMES:
        explanation = explain(problem.q, problem.k, problem.v, problem.pattern, backend=name)
        if explanation.forward.backend and explanation.backward.backend:
            found.append(name)
    assert len(found) > 1
    return found


@pytest.mark.parametrize("key_heads", [1, HEADS])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("name", ["long band", "everything"])
def test_dense_attention_is_right_where_it_is_used(name: str, width: int, key_heads: int) -> None:
    """Its gradients come from another backend, which goes on from the log-sum-exp."""
    problem = draw(PATTERNS[name], setting(batch=2, width=width, key_heads=key_heads))
    explanation = explain(problem.q, problem.k, problem.v, problem.pattern)
    assert explanation.forward.backend.name == "dense"
    assert explanation.backward.backend.name not in ("dense", "tiled")
    check_error(problem)


@every_kernel
@pytest.mark.parametrize("name", ["band", "band and columns", "heads apart", "blocks of heads", "small blocks"])
def test_dropout_drops_the_pairs_that_it_drops_on_a_cpu(backend: str, name: str) -> None:
    problem, seed = draw(PATTERNS[name], setting(backend=backend)), torch.tensor([2**61 + 5], device="cuda")
    if explain(problem.q, problem.k, problem.v, problem.pattern, dropout=0.3, backend=backend).forward.backend is None:
        pytest.skip(f"{backend} has no dropout")
    eye = torch.eye(LENGTH, device="cuda", dtype=torch.bfloat16)[:, :64].expand(1, HEADS, -1, -1)
    v = eye.clone().requires_grad_()
    call = problem.pattern.spec, 1.0, 0.0, 0.3, backend
    out, _ = torch.ops.gossamer.attend(0 * problem.q, problem.k, v, None, seed, None, None, *call)
    positions = torch.arange(LENGTH, device="cuda")
    kept = keep_factor(0.3, int(seed), torch.arange(HEADS, device="cuda"), positions, positions) > 0
    seen = kept & visible(problem.pattern, LENGTH, LENGTH, torch.device("cuda"))
    assert torch.equal(out[0] > 0, seen[..., :64])
    (gradient,) = torch.autograd.grad(out, v, eye)
    assert torch.equal(gradient[0] > 0, seen[:, :64].mT)


@pytest.mark.parametrize("backend", [None, *NAMES])
@pytest.mark.parametrize("name", ["band", "long band", "band, columns and rows"])
def test_a_hundred_runs_give_the_same_bits(backend: str | None, name: str) -> None:
    problem = drawn(PATTERNS[name], batch=2, queries=1096, backend=backend)
    leaves = [x.detach().requires_grad_() for x in problem.inputs.values()]

    def results() -> tuple[Tensor, ...]:
        out = attend(*leaves, problem.pattern, backend=backend)
        return out, *torch.autograd.grad(out, leaves, problem.grad_out)

    first = results()
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(first, results(), strict=True))


@pytest.mark.parametrize("backend", [None, *KERNELS])
@pytest.mark.parametrize("name", ["band", "long band", "band and columns", "heads apart"])
def test_a_cuda_graph_replays_with_new_numbers(backend: str | None, name: str) -> None:
    problem = drawn(PATTERNS[name], batch=2, backend=backend)
    leaves = [x.detach().requires_grad_() for x in problem.inputs.values()]

    def results() -> tuple[Tensor, ...]:
        out = attend(*leaves, problem.pattern, backend=backend)
        return out.detach(), *torch.autograd.grad(out, leaves, problem.grad_out)

    replayed, replay = captured(results)
    fresh = draw(problem.pattern, setting(batch=2, seed=1))
    with torch.no_grad():
        for x, new in zip((*leaves, problem.grad_out), (*fresh.inputs.values(), fresh.grad_out), strict=True):
            x.copy_(new)
    replay()
    for found, right in zip(replayed, results(), strict=True):
        assert torch.equal(found, right)


def captured(results: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """(what a graph of the call writes, its replay)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = results()
    return written, graph.replay


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("name", ["band", "band and columns", "heads apart"])
def test_a_cache_fills_up_under_one_graph(name: str, queries: int) -> None:
    """Decoding against a cache of fixed capacity: what stands behind a length is NaN and never read."""
    problem = draw(PATTERNS[name], setting(batch=3, queries=queries, keys=LENGTH))
    lengths = torch.tensor([LENGTH, 40, 2], device="cuda", dtype=torch.int32)
    k, v = torch.full_like(problem.k, torch.nan), torch.full_like(problem.v, torch.nan)

    def results() -> tuple[Tensor, ...]:
        return attend(problem.q, k, v, problem.pattern, lengths=lengths, return_lse=True)

    with torch.no_grad():
        assert explain(problem.q, k, v, problem.pattern, lengths=lengths).forward.backend.name == "decode"
        (out, lse), replay = captured(results)
        for now in ([LENGTH, 40, 2], [300, 41, 3], [5, 327, 0]):
            lengths.copy_(torch.tensor(now))
            for number, length in enumerate(now):
                for cache, whole in ((k, problem.k), (v, problem.v)):
                    cache[number].fill_(torch.nan)
                    cache[number, :, :length] = whole[number, :, :length]
            replay()
            right, right_lse = attend(*(x.double() for x in (problem.q, k, v)), problem.pattern, lengths=lengths,
                                      return_lse=True)  # fmt: skip
            assert torch.equal(lse == -torch.inf, right_lse == -torch.inf)
            torch.testing.assert_close(out.double(), right, rtol=0.02, atol=0.02)
            torch.testing.assert_close(lse.double(), right_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["band", "heads apart"])
def test_compiled_whole_it_is_the_same(name: str) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q * 2, k, v, PATTERNS[name]) * 4  # powers of two: whatever the compiler fuses rounds nothing

    leaves = [x.requires_grad_() for x in draw(PATTERNS[name], setting()).inputs.values()]
    compiled = torch.compile(function, fullgraph=True)
    found, right = compiled(*leaves), function(*leaves)
    torch.testing.assert_close(found, right)
    pairs = zip(*(torch.autograd.grad(x.float().square().sum(), leaves) for x in (found, right)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


@every_kernel
def test_any_strides(backend: str) -> None:
    """Projections' heads inside tokens, every second number, and a batch that repeats itself."""
    problem = drawn(PATTERNS["band and columns"], batch=2, backend=backend)
    right = run(ours, problem)

    def inside(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def spaced(x: Tensor) -> Tensor:
        return x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)[..., 1::2].copy_(x)

    for view in (inside, spaced):
        viewed = {name: view(getattr(problem, name)) for name in ("q", "k", "v", "grad_out", "grad_lse")}
        found = run(ours, replace(problem, **viewed))
        assert all(torch.equal(found[name], x) for name, x in right.items()), view.__name__
    alike = {name: getattr(problem, name)[:1].expand(2, *getattr(problem, name).shape[1:]) for name in viewed}
    found = run(ours, replace(problem, **alike))
    assert torch.equal(found["out"], right["out"][:1].expand_as(found["out"]))


def with_free_memory(gibibytes: int) -> None:
    if torch.cuda.mem_get_info()[0] < gibibytes * 2**30:
        pytest.skip(f"needs {gibibytes} GiB of free memory")


@every_kernel
@pytest.mark.parametrize("far", [2**31 + 512, 2**31 + 513])
def test_strides_of_more_than_two_to_the_31_numbers(backend: str, far: int) -> None:
    """The second head begins behind number 2³¹, and is what it is in memory of its own."""
    with_free_memory(10)
    numbers = LENGTH * 64
    room = torch.empty(far + 2 * numbers, device="cuda", dtype=torch.bfloat16)
    tensors = [room.as_strided((1, 2, LENGTH, 64), (2 * far, far, 64, 1), at).normal_() for at in (0, numbers)]

    def results(q: Tensor, grad_out: Tensor) -> tuple[Tensor, ...]:
        leaf = q.detach().requires_grad_()
        out = attend(leaf, leaf, leaf, PATTERNS["band and columns"], backend=backend)
        return out, *torch.autograd.grad(out, leaf, grad_out)

    for found, right in zip(results(*tensors), results(*(x.contiguous() for x in tensors)), strict=True):
        assert torch.equal(found, right)


@every_kernel
def test_results_of_more_than_two_to_the_31_numbers(backend: str) -> None:
    """The last of many heads is the first, though its results lie behind number 2³¹."""
    with_free_memory(60)
    heads, length = 33, 2**20
    x, grad_out = torch.randn(2, 1, 1, length, 64, device="cuda", dtype=torch.bfloat16).expand(2, 1, heads, length, 64)
    leaf = x.detach().requires_grad_()
    out = attend(leaf, leaf, leaf, PATTERNS["band"], backend=backend)
    (gradient,) = torch.autograd.grad(out, leaf, grad_out)
    for found in (out, gradient):
        assert found.numel() > 2**31 and torch.equal(found[:, 0], found[:, -1])
        assert found[:, -1].isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", NAMES)
def test_a_gpu_that_is_not_the_current_one(backend: str) -> None:
    assert torch.cuda.current_device() == 0
    for name in ("band", "band and columns"):
        check_error(drawn(PATTERNS[name], device="cuda:1", backend=backend))
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", ["band", "long band", "band and columns", "heads apart"])
def test_launches_without_triton_do_what_its_own_do(name: str) -> None:
    """Each reads the tensors of its own call, on the current stream; who watches launches gets Triton's own."""
    runtime = pytest.importorskip("triton").knobs.runtime
    calls = [
        [torch.randn(2, HEADS, LENGTH, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(3)]
        for _ in range(3)
    ]

    def results() -> list[Tensor]:
        found: list[Tensor] = []
        for inputs in calls:
            out, lse = attend(*inputs, PATTERNS[name], return_lse=True)
            gradients = torch.autograd.grad(out.float().square().sum() + lse.sum(), inputs)
            found += out.detach(), lse.detach(), *gradients  # no graph may live on: other streams follow
            with torch.no_grad():
                found.append(attend(*inputs, PATTERNS[name]))
            found.append(attend(*(x.detach() for x in inputs), PATTERNS[name]))  # of which no log-sum-exp is written
        torch.cuda.synchronize()
        return found

    watched: list[object] = []
    runtime.launch_enter_hook.add(watched.append)
    try:
        right = results()
    finally:
        runtime.launch_enter_hook.remove(watched.append)
    assert watched
    launched = len(watched)
    with torch.cuda.stream(torch.cuda.Stream()):
        others = results(), results()
    assert len(watched) == launched
    assert all(torch.equal(a, b) for found in others for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("name", ["band", "long band"])
def test_an_empty_batch_is_an_empty_result(name: str) -> None:
    q = torch.randn(0, HEADS, LENGTH, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    out = attend(q, q, q, PATTERNS[name])
    assert out.shape == torch.autograd.grad(out.sum(), q)[0].shape == q.shape


def test_what_no_kernel_runs_is_refused_by_name() -> None:
    q = torch.randn(1, 1, 64, 64, device="cuda", dtype=torch.float64)
    for backend in KERNELS:
        with pytest.raises(Unsupported, match=f"{backend}: inputs are torch.float64"):
            attend(q, q, q, PATTERNS["band"], backend=backend)
