"""Launches without Triton pass what Triton would have passed, and are kept for exactly one kind of arguments."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton launches the kernels")

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher, wrap_handle_tensordesc
from triton.runtime.driver import driver

from gossamer.kernels.hopper import (
    columns,
    row_shares,
    stream_backward,
    stream_forward,
    sweep,
    sweep_backward,
    sweep_forward,
)
from gossamer.kernels.hopper import launch as launches
from gossamer.kernels.hopper.backend import HOPPER
from gossamer.kernels.hopper.descriptors import tiles
from gossamer.kernels.hopper.launch import Launch, Operands, Ready, Repeated, launch
from gossamer.kernels.problem import Saved, Softmax
from gossamer.patterns import Causal, Pattern, Strided, Window, presets
from gossamer.plan import plan
from tests.kernels import sm90

if knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process and launches nothing", allow_module_level=True)

HOOKS = slice(10, 13)
"""Launch metadata and hooks among what the driver's launcher takes: Triton passes empty chains, we pass None."""


class Driver(SimpleNamespace):
    """Stands in for the GPU: remembers what its launcher is given; a descriptor is all that it is made of."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.stream = 70
        super().__init__(utils=SimpleNamespace(
            fill_tma_descriptor=lambda *made: (*made[:4], *map(tuple, made[4:7]), made[7]),
            load_binary=lambda *_: (1, 2, 0, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": sm90.SHARED_MEMORY},
        ))  # fmt: skip

    def get_current_stream(self, device: int | None) -> int:
        return self.stream

    def get_current_device(self) -> str:
        return f"sm_90 of {id(self.given)}"  # Triton keeps launchers for each device, and these are this one's

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> CudaLauncher:
        """Triton's own launcher but for its last step, which is written in C."""
        made = CudaLauncher.__new__(CudaLauncher)
        made.launch = wrap_handle_tensordesc(self._launch, source.signature, metadata.tensordesc_meta)
        made.num_ctas = 1
        for name in ("global_scratch_size", "global_scratch_align", "profile_scratch_size", "profile_scratch_align"):
            setattr(made, name, getattr(metadata, name))
        made.launch_cooperative_grid, made.launch_pdl = metadata.launch_cooperative_grid, metadata.launch_pdl
        return made

    def _launch(self, *given: Any) -> None:
        given = tuple(x.data_ptr() if hasattr(x, "data_ptr") else x for x in given)
        self.given.append((*given[: HOOKS.start], *given[HOOKS.stop :]))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    found = Driver()
    monkeypatch.setattr(driver, "_active", found)
    monkeypatch.setattr(launches, "_KNOWN", {})
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    for module in (launches, sweep):
        monkeypatch.setattr(module, "multiprocessors", lambda _: sm90.MULTIPROCESSORS)
    return found


PLAIN, COLUMNS = Causal() & Window(64), Causal() & (Window(256) | Strided(16))


ENDS = {"within": torch.tensor([[3, 250]], dtype=torch.int32)}
RUNS = {"runs": (torch.zeros(1, 300, dtype=torch.int32), torch.full((1, 300), 9, dtype=torch.int32))}


@pytest.mark.parametrize(
    ("pattern", "key_heads", "options", "told"),
    [
        (PLAIN, 2, False, {}), (PLAIN, 2, True, {}), (COLUMNS, 2, False, {}), (COLUMNS, 1, True, {}),
        (presets.longformer(40), 2, False, {}), (presets.longformer(40), 1, True, {}),
        (COLUMNS, 2, False, ENDS), (Causal() | ~Causal(), 2, True, RUNS),
    ],
    ids=["band", "band, every option", "columns", "columns, every option", "longformer", "longformer, every option",
         "within ends", "runs"],
)  # fmt: skip
def test_the_driver_gets_what_triton_would_give_it(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, pattern: Pattern, key_heads: int, options: bool, told: dict
) -> None:
    def twice(*given: Any) -> None:
        launches._KNOWN.clear()
        gpu.stream = 70
        launch(*given)
        gpu.stream = 71
        launch(*given)

    for module in (launches, columns, row_shares, stream_forward, stream_backward, sweep_forward, sweep_backward):
        monkeypatch.setattr(module, "launch", twice)
    q, k, v = (torch.zeros(1, heads, 300, 64, dtype=torch.bfloat16) for heads in (2, key_heads, key_heads))
    sinks = torch.zeros(2) if options else None
    made, softmax = plan(pattern, 300, 300, 2), Softmax(0.125, **told)
    out, lse = HOPPER.forward(q, k, v, sinks, made, softmax)
    saved = Saved(q, k, v, out, lse, sinks)
    HOPPER.backward(saved, torch.zeros_like(out), torch.zeros_like(lse) if options else None, made, softmax)
    assert len(gpu.given) >= 6
    for through_triton, direct in zip(gpu.given[::2], gpu.given[1::2], strict=True):
        assert through_triton[3] == 70 and direct[3] == 71
        assert through_triton[:3] == direct[:3]
        # Triton passes a configuration as it is, and compares constants by their own rules
        assert [*map(str, through_triton[4:])] == [*map(str, direct[4:])]


class Kernel:
    """Counts how often it is asked for what fits."""

    def __init__(self, gpu: Driver):
        self.gpu, self.asked = gpu, 0

    def __getitem__(self, grid: tuple[int]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            self.asked += 1
            meta = {"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": [1, 1, 64, 64], "fp4_padded": False}
            metadata = SimpleNamespace(
                tensordesc_meta=[meta], global_scratch_size=0, global_scratch_align=1, profile_scratch_size=0,
                profile_scratch_align=1, launch_cooperative_grid=False, launch_pdl=False,
            )  # fmt: skip
            source = SimpleNamespace(signature={"x": "tensordesc<bf16[1, 1, 64, 64]>", "y": "*fp32", "n": "i32"})
            compiled = SimpleNamespace(
                run=self.gpu.launcher_cls(source, metadata), metadata=metadata, function=9, packed_metadata=(4, 1, 0)
            )
            compiled.run(*grid, 1, 1, self.gpu.stream, 9, (4, 1, 0), None, None, None, *arguments)
            return compiled

        return run


@pytest.fixture
def prepare(gpu: Driver) -> Callable[..., Launch]:
    kernel = Kernel(gpu)

    def made(operands: Operands, number: float = 3) -> Launch:
        x, y = operands
        return Launch(kernel, 200, (tiles(x, 64, 64), y, number), ())

    made.kernel = kernel
    return made


def operands(dtype: torch.dtype = torch.bfloat16, rows: int = 5, start: int = 0) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 2, rows, 64, dtype=dtype), torch.zeros(32)[start:]


CHANGES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "a dtype": lambda: (operands(dtype=torch.float16), 3),
    "a shape": lambda: (operands(rows=6), 3),
    "strides": lambda: ((operands()[0].transpose(1, 2).contiguous().transpose(1, 2), operands()[1]), 3),
    "an alignment": lambda: (operands(start=1), 3),
    "another number": lambda: (operands(), 16),
    "an equal number of another type": lambda: (operands(), 3.0),
    "nothing": lambda: ((operands()[0], None), 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_kind_is_another_kernel(gpu: Driver, prepare: Any, change: str) -> None:
    given = operands()
    launch(prepare, given, 3)
    launch(prepare, operands(), 3)
    assert prepare.kernel.asked == 1
    changed, number = CHANGES[change]()
    launch(prepare, changed, number)
    assert prepare.kernel.asked == 2
    launch(prepare, given, 3)
    assert prepare.kernel.asked == 2 and gpu.given[0] == gpu.given[-1]


def test_one_tensor_given_twice_is_two_operands(gpu: Driver) -> None:
    kernel = Kernel(gpu)

    def made(given: Operands) -> Launch:
        return Launch(kernel, 1, (tiles(given[0], 64, 64), given[1], 1), ())

    same, (one, other) = operands()[0], (operands()[0], operands()[0])
    launch(made, (same, same))
    launch(made, (one, other))
    assert kernel.asked == 1
    assert gpu.given[-1][10][0] == one.data_ptr() and gpu.given[-1][19] == other.data_ptr()


def test_what_is_kept_is_bounded(gpu: Driver, prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "MOST_KNOWN", 4)
    for count in range(1, 20):
        launch(prepare, operands(rows=count))
        assert len(launches._KNOWN) <= 4


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_who_watches_launches_sees_each(prepare: Any, monkeypatch: pytest.MonkeyPatch, hook: str) -> None:
    launch(prepare, operands())
    launch(prepare, operands())
    assert prepare.kernel.asked == 1
    chain = knobs.HookChain()
    chain.add(lambda _: None)
    for watching in (chain, lambda _: None):
        monkeypatch.setattr(knobs.runtime, hook, watching)
        before = prepare.kernel.asked
        launch(prepare, operands())
        assert prepare.kernel.asked == before + 1
        assert not Repeated.may_run(16)


def test_a_repeated_launch_needs_addresses_alone(gpu: Driver, prepare: Any) -> None:
    assert not Repeated.may_run(16 | 24) and Repeated.may_run(16 | 32)
    repeated = Repeated(prepare)
    for addresses in ((16, 32), (48, 64)):  # the first time the operands tell
        repeated.run(operands(), addresses)
    assert prepare.kernel.asked == 1 and len(gpu.given) == 2
    assert gpu.given[-1][10][0] == 48 and gpu.given[-1][19] == 64
    Repeated(prepare).run(operands(), (16, 32))  # another of a kind that was launched
    assert prepare.kernel.asked == 1


def test_another_triton_is_refused() -> None:
    run = SimpleNamespace(launch=lambda *_: None, global_scratch_size=0, profile_scratch_size=0)
    with pytest.raises(RuntimeError, match=r"triton==3\.6"):
        launches._launcher(run)


@pytest.mark.parametrize("wanted", [True, False], ids=["log-sum-exp", "output alone"])
def test_a_repeated_forward_is_the_launch_alone(gpu: Driver, monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    current = None  # as the index of the tensors' device here
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current, raising=False)
    q, k, v = (torch.zeros(1, 2, 300, 64, dtype=torch.bfloat16) for _ in range(3))
    made, softmax = plan(PLAIN, 300, 300, 2), Softmax(0.125)
    HOPPER.forward(q, k, v, None, made, softmax)
    first = gpu.given[-1]
    again = HOPPER.again(q, k, v, made, softmax, lse=wanted)
    assert len(gpu.given) == 1
    again(q, k, v)
    out, lse = again(k, q, v)
    assert len(gpu.given) == 3
    given = gpu.given[-1]
    assert [x[0] for x in given if isinstance(x, tuple) and len(x) == 8] == [x.data_ptr() for x in (k, q, v, out)]
    assert out.shape == q.shape and (lse is not None) == wanted
    place = next(at for at, x in enumerate(first) if isinstance(x, int) and x > 2**32)  # the first bare address
    if wanted:
        assert lse.shape == q.shape[:3] and given[place : place + 4] == (lse.data_ptr(), 600, 300, 300)
    else:  # an address that is there, and no query to write for
        assert given[place : place + 4] == (out.data_ptr(), 0, 0, 0)
    assert given[4] == first[4] and given[place + 4 :] == first[place + 4 :]  # the same kernel and settings
    odd = torch.zeros(q.numel() + 1, dtype=torch.bfloat16)[1:].view_as(q)
    before = len(gpu.given)
    assert again(odd, k, v) is None and len(gpu.given) == before
    current = 1

    @contextlib.contextmanager
    def made_current(device: torch.device) -> Iterator[None]:
        nonlocal current
        current = device.index
        yield

    monkeypatch.setattr(torch.cuda, "device", made_current)
    assert again(q, k, v) is not None and len(gpu.given) == before + 1 and current == q.device.index
    other = plan(COLUMNS, 300, 300, 2)
    assert HOPPER.again(q, k, v, other, softmax, lse=wanted) is None
    assert isinstance(next(iter(launches._KNOWN.values())), Ready)


def test_threads_that_begin_together_launch_the_same(gpu: Driver, prepare: Any) -> None:
    """Cold caches, eight threads: each launch is of its own addresses, whoever asks Triton first."""
    begin, given = threading.Barrier(8), [operands() for _ in range(8)]

    def work(mine: tuple[Tensor, Tensor]) -> None:
        begin.wait()
        for _ in range(20):
            launch(prepare, mine)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launched = Counter((each[10][0], each[19]) for each in gpu.given)
    assert launched == {(x.data_ptr(), y.data_ptr()): 20 for x, y in given}
    assert prepare.kernel.asked <= 8
