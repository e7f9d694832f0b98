"""Attention over chosen blocks, in Triton's interpreter, and what the kernels do not take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gossamer import Unsupported
from gossamer.kernels.block_choices.requirements import queries_at_once, unfit
from gossamer.kernels.block_choices.road import runs_of
from gossamer.kernels.indexed import Inputs
from gossamer.kernels.problem import Softmax
from gossamer.kernels.triton.backend import shared_memory
from gossamer.kernels.triton.chosen_blocks import TRITON_BLOCKS
from gossamer.kernels.triton.indexed import TRITON_INDEXED
from gossamer.ops.indexed import road
from gossamer.selectors.selection import Selection

pytest.importorskip("triton", reason="the kernels are written in it")

from tests.kernels.block_choices_in_interpreter import CHECKS
from tests.kernels.interpreter import asked, interpreted_in_halves


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest) -> dict[str, str]:
    return interpreted_in_halves("block_choices_in_interpreter", asked(request, test_in_the_interpreter))[0]


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name: str, said: dict[str, str]) -> None:
    assert said[name] == ""


def given(block_size: int = 64, chosen: int = 2, softmax: Softmax | None = None, **shapes: int) -> Inputs:
    heads, queries, width = shapes.get("heads", 4), shapes.get("queries", 512), shapes.get("width", 16)
    q = torch.empty(1, heads, queries, width, device="meta")
    k = torch.empty(1, 1, shapes.get("keys", 8), width, device="meta")
    selection = Selection(torch.empty(1, 1, queries, chosen, dtype=torch.int32, device="meta"), block_size)
    return Inputs(q, k, k, width, None, selection, softmax or Softmax(0.5, 0.0, 0.0, None))


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (given(block_size=1), "blocks of 1 keys"),
        (given(softmax=Softmax(0.5, 3.0, 0.0, None)), "softcap"),
        (given(softmax=Softmax(-1.0, 0.0, 0.0, None)), "scale is -1.0"),
        (given(width=512), "512 wide"),
        (given(heads=64), "64 query heads"),
        (given(chosen=65), "65 blocks"),
        (given(queries=2**20, keys=2**20, chosen=1), "gigabyte"),
        (given(queries=2**27, chosen=16), "number"),
        (given(queries=0), "nothing"),
        (given(queries=255), "255 queries"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_it_says_what_it_does_not_take(inputs: Inputs, reason: str) -> None:
    assert reason in (unfit(inputs) or "")


def test_it_takes_what_fits() -> None:
    assert unfit(given()) is None
    assert unfit(given(queries=256)) is None


@pytest.mark.parametrize(
    ("queries", "lengths"), [(512, [512]), (2**20, [2**19] * 2), (2**20 + 64, [349568] * 2 + [349504])]
)
def test_runs_are_alike_and_fit_the_scratch(queries: int, lengths: list[int]) -> None:
    inputs = given(queries=queries, keys=queries, heads=16, width=64, chosen=1)
    runs = list(runs_of(inputs))
    assert [run.q.shape[2] for _, run in runs] == lengths and max(lengths) <= queries_at_once(inputs) == 2**19
    assert [run.k.shape[2] for _, run in runs] == [queries] * len(runs)  # it is not causal
    assert [run.selection.indices.shape[2] for _, run in runs] == lengths


def test_a_gpu_takes_it_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("indexed", "chosen_blocks"):
        monkeypatch.setattr(f"gossamer.kernels.triton.{module}.without_gpu", lambda device: None)
    assert road(given()).name == "blocks"
    assert road(given(), "triton") is TRITON_INDEXED
    for other in (given(queries=255), given(block_size=8), given(softmax=Softmax(0.5, 3.0, 0.0, None))):
        assert road(other) is TRITON_INDEXED


@pytest.mark.parametrize(
    ("width", "size", "kib", "reason"),
    [
        (128, 32, 116, None),
        (128, 32, 115, "it needs 116 KiB of shared memory for such blocks; the GPU has 115"),
        (64, 32, 99, None),
        (64, 32, 64, "it needs 99 KiB"),
        (65, 64, 227, "keys and values take 64 KiB as tiles; it takes 32"),
    ],
)
def test_portable_kernels_are_left_out_where_a_block_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, width: int, size: int, kib: int, reason: str | None
) -> None:
    monkeypatch.setattr("gossamer.kernels.triton.chosen_blocks.without_gpu", lambda device: None)
    monkeypatch.setattr("gossamer.kernels.triton.chosen_blocks.shared_memory", lambda device: kib << 10)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    said = TRITON_BLOCKS.refuses(given(block_size=size, width=width))
    assert said is None if reason is None else reason in said


def test_shared_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.driver import driver

    utils = SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": 1000 + index})
    monkeypatch.setattr(driver, "_active", SimpleNamespace(utils=utils))
    assert shared_memory.__wrapped__(torch.device("cuda", 7)) == 1007


def test_it_says_what_each_way_misses() -> None:
    with pytest.raises(Unsupported, match=r"blocks: hopper: it needs .* 9\.0.*; triton: tensors are on meta"):
        road(given(), "blocks")
