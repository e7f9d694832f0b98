"""Decoding is measured on the problem that serving has, judged pair by pair, and its bytes are those that are seen."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from gossamer.attention import attend
from gossamer.bench.cache import Cache, filled_of
from gossamer.bench.config import BenchConfig
from gossamer.bench.contenders import Attention, attentions
from gossamer.bench.decode_case import decode_case, decode_fault, decode_work
from gossamer.bench.driver import run
from gossamer.bench.setting import Setting, decide
from gossamer.patterns import Causal, Pattern, Strided, Window

NAMES = ("sdpa", "naive", "document", "window", "window+tokens", "window+strided")
CONFIG = BenchConfig(
    cases=("decode",), contenders=NAMES, heads=6, key_heads=2, head_width=8, window=16, batch=3, device="cpu", threads=1
)


@pytest.fixture(params=[2, None], ids=["grouped", "alike"])
def setting(request) -> Setting:
    return decide(replace(CONFIG, key_heads=request.param))


def attended(pattern: Pattern, q: torch.Tensor, cache: Cache) -> torch.Tensor:
    return attend(q, cache.k, cache.v, pattern, lengths=cache.lengths)


def named(setting: Setting, name: str) -> Attention:
    return next(a for a in attentions(setting) if a.name == name)


def test_a_cache_is_never_full_and_holds_nan_behind_its_keys():
    assert [filled_of(n) for n in (2, 64, 8192, 131072)] == [1, 63, 8128, 130048]
    k, v = torch.randn(2, 2, 10, 4), torch.randn(2, 2, 10, 4)
    cache = Cache.of(k, v, 7)
    assert cache.lengths.tolist() == [7, 7] and cache.lengths.dtype == torch.int32
    for whole, part in zip((k, v), cache.filled_part, strict=True):
        assert part.isfinite().all() and part.shape[2] == 7 and part.data_ptr() == whole.data_ptr()
        assert whole[:, :, 7:].isnan().all()


def test_a_step_is_one_query_for_each_sequence_at_the_end_of_its_cache(setting):
    case = decode_case(setting, attentions(setting))
    assert case.lengths == setting.config.lengths and case.clock is None
    found = {c.name: c.prepare(256)() for c in case.contenders if not c.missing}
    assert found["window"].shape == (3, 6, 1, 8) and not found["window"].requires_grad
    everything = replace(named(setting, "window"), decode=lambda n: partial(attended, Causal()))
    (ours,) = decode_case(setting, (everything,)).contenders
    torch.testing.assert_close(ours.prepare(256)(), found["sdpa"])


def test_everyone_passes_the_gate_or_says_why_there_is_none(setting):
    case = decode_case(setting, attentions(setting))
    missing = {c.name: c.missing for c in case.contenders if c.missing}
    assert missing == {"naive": "is not measured at decoding"}
    for contender in case.contenders:
        if not contender.missing:
            assert contender.fault() is None
            for capacity in (64, 500):
                assert contender.fault_at(capacity, contender.prepare(capacity)) is None


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (Causal() & (Window(101) | Strided(100)), "6 wrong pairs; first: head 0, query 0 sees key 132"),
        (Causal() & (Window(100) | Strided(200)), "6 wrong pairs; first: head 0, query 0 misses key 100"),
    ],
)
def test_one_wrong_key_is_named(pattern, words):
    setting = decide(replace(CONFIG, window=100))  # 233 keys: two of the columns stand before the window
    right = named(setting, "window+strided")
    wrong = replace(right, decode=lambda n: partial(attended, pattern))
    assert decode_fault(setting, right) is None
    assert decode_fault(setting, wrong) == words


def test_keys_behind_the_end_are_seen_by_the_gate(setting):
    whole = replace(named(setting, "sdpa"), decode=lambda n: lambda q, cache: attend(q, cache.k, cache.v, Causal()))
    (contender,) = decode_case(setting, (whole,)).contenders
    assert "wrong pairs" in contender.fault()
    assert contender.fault_at(256, contender.prepare(256)) == "output is not finite everywhere"


def test_wrong_numbers_at_full_size_are_named(setting):
    ours = named(setting, "window+strided")
    wrong = replace(ours, decode=lambda n: lambda q, cache: 1.01 * ours.decode(n)(q, cache))
    (contender,) = decode_case(setting, (wrong,)).contenders
    assert contender.fault_at(256, contender.prepare(256)).startswith("error of output is")


def test_an_output_that_is_not_written_again_is_named(setting):
    ours, kept = named(setting, "window+strided"), []

    def stale(q, cache):
        kept.append(ours.decode(256)(q, cache))
        return kept[0]

    (contender,) = decode_case(setting, (replace(ours, decode=lambda n: stale),)).contenders
    assert contender.fault_at(256, contender.prepare(256)) == "output is not finite everywhere"


def test_useful_bytes_are_keys_and_values_seen_once_for_the_heads_that_share_them(setting):
    filled, key_heads = filled_of(512), setting.key_heads
    seen = int((Causal() & (Window(16) | Strided(100))).dense_mask(filled)[-1].sum())
    assert seen == 16 + 5
    work = decode_work(setting, named(setting, "window+strided"), 512)
    assert work.bytes == 3 * 4 * 8 * (2 * key_heads * seen + 2 * 6)
    assert work.operations == 3 * 6 * 4 * 8 * seen
    dense = decode_work(setting, named(setting, "sdpa"), 512)
    assert dense.bytes == 3 * 4 * 8 * (2 * key_heads * filled + 2 * 6)


def test_the_driver_measures_it(setting):
    results = run(replace(setting.config, lengths=(64, 128), repeats=2))
    assert results.cases == ("decoding of one token",)
    timed = {(m.contender, m.length) for m in results.measurements(results.cases[0])}
    assert timed == {(name, n) for name in NAMES if name != "naive" for n in (64, 128)}
    assert all(results.share_of_floor(m) > 0 for m in results.measurements(results.cases[0]))


@pytest.mark.gpu
@pytest.mark.parametrize("key_heads", [6, 2])
def test_a_graph_decodes_what_the_call_does(key_heads):
    config = replace(CONFIG, key_heads=key_heads, head_width=64, window=512, device="cuda", lengths=(4096,), repeats=2)
    results = run(replace(config, contenders=("sdpa", "flash", "window", "window+strided")))
    assert len(results.measurements(results.cases[0])) == 4
