"""Every kernel over chosen latents, and that of an index, compiles for Hopper within its registers and its memory."""

from __future__ import annotations

import pytest
import torch

from gossamer.kernels import Softmax
from gossamer.kernels.hopper.indexed import HOPPER_INDEXED
from gossamer.kernels.hopper.top_keys import HOPPER_SCORES
from gossamer.kernels.indexed import Inputs, Returning
from gossamer.kernels.top_keys import Indexed
from gossamer.selectors.selection import Selection

triton = pytest.importorskip("triton", reason="the kernels need Triton to compile")

from gossamer.kernels.hopper.index_scores import segments_of  # noqa: E402
from tests.kernels import sm90  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("Triton interprets in this process and compiles nothing", allow_module_level=True)

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
LATENTS = {
    "128 heads": (128, BF16, False),
    "16 heads": (16, BF16, False),
    "sinks": (64, FP16, True),
}
INDICES = {
    "eight bits": (64, 128, FP8, True),
    "bfloat16": (64, 128, BF16, True),
    "few heads": (4, 64, FP16, False),
    "eight heads": (8, 128, FP8, True),
}


@pytest.mark.parametrize("name", LATENTS)
def test_the_kernels_over_latents_fit_hopper(name: str) -> None:
    heads, dtype, sinks = LATENTS[name]
    q, latents = torch.zeros(1, heads, 70, 576, dtype=dtype), torch.zeros(1, 1, 70, 576, dtype=dtype)
    selection = Selection(torch.zeros(1, 70, 64, dtype=torch.int32), causal=True)
    given = Inputs(q, latents, None, 512, torch.zeros(heads) if sinks else None, selection, Softmax(0.05))
    with sm90.hopper() as kernels:
        out, lse = HOPPER_INDEXED.forward(given)
        HOPPER_INDEXED.backward(given, Returning(out, lse, torch.zeros_like(out), torch.zeros_like(lse)))
    assert len(kernels) == 7  # lists, forward; delta, keys, queries, sums of blocks, sums
    assert [fault for kernel in kernels for fault in kernel.faults] == []


def test_many_sequences_and_heads_are_launched() -> None:
    from gossamer.kernels.hopper.latent_delta import delta_of
    from gossamer.kernels.triton.quantizing import quantize

    with sm90.hopper() as kernels:
        out = torch.zeros(1, 1, 1, 512, dtype=BF16).expand(512, 128, 1, 512)
        delta_of(out, out, None)
        quantize(torch.zeros(1, 1, 1, 64, dtype=BF16).expand(1024, 64, 1, 64), 1e-4, 448.0, power_of_two=False)
    assert len(kernels) == 2


def test_sinks_may_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.kernels.hopper import latent

    found: list[torch.Tensor] = []
    monkeypatch.setattr(latent, "latent_forward", lambda *given, **_: found.append(given[5]))
    q, latents = torch.zeros(1, 8, 3, 576, dtype=BF16), torch.zeros(1, 1, 3, 576, dtype=BF16)
    selection, sinks = Selection(torch.zeros(1, 3, 1, dtype=torch.int32)), torch.arange(16.0)[::2]
    with sm90.hopper():
        HOPPER_INDEXED.forward(Inputs(q, latents, None, 512, sinks, selection, Softmax(0.05)))
    assert found[0].is_contiguous() and torch.equal(found[0], sinks)


@pytest.mark.parametrize("keys", [1, 199, 202, 8193])
def test_rows_of_any_length_are_read_in_vectors(keys: int) -> None:
    from gossamer.kernels.triton.top_keys_scores import scores_of
    from gossamer.kernels.triton.top_keys_select import RowSelection

    q, k, visible = torch.zeros(2, 4, 7, 64, dtype=BF16), torch.zeros(2, keys, 64, dtype=BF16), torch.zeros(2, 7)
    index = Indexed(q, k, torch.zeros(2, 7, 4), visible.int(), relu=True)
    with sm90.hopper():
        for scores in (HOPPER_SCORES.score(index), scores_of(index)):
            assert scores.shape == (2, 7, keys) and RowSelection()._sizes(scores.flatten(0, 1), 5)["UNIT"] == 4


def test_the_kernel_of_the_mass_fits_hopper() -> None:
    from gossamer.kernels.chosen import Heads
    from gossamer.kernels.hopper.latent_mass import latent_mass

    one = torch.zeros(3 * 576, dtype=BF16).as_strided((1, 3, 1, 576), (1728, 576, 8, 1))  # of one, strides mean nothing
    for q in (torch.zeros(1, 128, 70, 576, dtype=BF16), torch.zeros(1, 72, 70, 576, dtype=FP16), one):
        places = torch.zeros(1, q.shape[2], 200, dtype=torch.int32)
        with sm90.hopper() as kernels:
            found = latent_mass(Heads(q, torch.zeros(1, 1, 70, 576, dtype=q.dtype), q[..., 0].float(), places, 0.1))
        assert [fault for kernel in kernels for fault in kernel.faults] == []
        assert len(kernels) == 1 and found.shape == places.shape


@pytest.mark.parametrize("name", INDICES)
def test_the_kernel_of_an_index_fits_hopper(name: str) -> None:
    heads, width, dtype, relu = INDICES[name]
    q, k = torch.zeros(1, heads, 40, width).to(dtype), torch.zeros(1, 200, width).to(dtype)
    scales = torch.zeros(1, 200) if dtype == FP8 else None
    visible = torch.zeros(1, 40, dtype=torch.int32)
    with sm90.hopper() as kernels:
        HOPPER_SCORES.score(Indexed(q, k, torch.zeros(1, 40, heads), visible, relu, scales))
    assert [fault for kernel in kernels for fault in kernel.faults] == []
    assert len(kernels) == 1


@pytest.mark.parametrize("places", [1, 16, 131, 132, 5000])
@pytest.mark.parametrize("tiles", [1, 2, 3, 255, 256, 257, 512, 1000, 2048, 2049, 16384])
def test_segments_hold_all_tiles_and_are_of_one_length(tiles: int, places: int) -> None:
    segments, length = segments_of(tiles, places, 132)
    assert 2 <= length <= 256 and (segments - 1) * length < tiles <= segments * length
    if places >= 132:
        assert segments == -(-tiles // 256) and (tiles <= 256 or segments * length - tiles < segments)
    elif tiles >= 264:
        assert segments * places * 2 > 132, "a few queries of many keys are work for most multiprocessors"
