"""The script for models of transformers: the rivals' masks, the gate, the verdicts on figures by hand, a rehearsal.

A gate that lets a planted fault pass would time a model that computes something else.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gossamer import Causal, Pattern, Sinks, Window
from gossamer.bench import BenchConfig, Measurement, ModelBench, Results
from gossamer.bench.results import Absence
from gossamer.bench.setting import Setting
from gossamer.integrations.huggingface import sparsify
from gossamer.machine import this_machine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "h200_huggingface.py"
WINDOW, SINKS = 64, 4
DECODING = "decoding of one token, batch 1"

# On a CPU the rival runs uncompiled, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


@pytest.fixture
def script(monkeypatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as it is where the script runs
    spec = importlib.util.spec_from_file_location("h200_huggingface", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.compiler.reset()  # what was compiled here counts against a limit that other tests share


@pytest.fixture
def part(script):
    """A module of the script by its name."""
    return lambda name: importlib.import_module(f"huggingface.{name}")


@pytest.fixture
def config() -> BenchConfig:
    model = ModelBench(lengths=(256, 384), layers=2, vocabulary=97)
    return BenchConfig(
        heads=4, key_heads=2, head_width=16, window=WINDOW, model=model, repeats=1, warmup=2, precision="bf16",
        device="cpu",
    )  # fmt: skip


@pytest.fixture
def family(part, config):
    return part("models").Family(Setting(config))


def test_it_measures_exactly_what_is_promised(script, part):
    for config, _ in script.RACES.values():
        assert (config.heads, config.key_heads, config.head_width, config.window) == (32, 8, 64, 1024)
        assert (config.model.layers, config.model.vocabulary, config.precision) == (16, 128256, "bf16")
        assert part("models").pattern_of(config) == Causal() & (Window(1024) | Sinks(64))
    rows = {name: (config.batch, config.model.lengths) for name, (config, _) in script.RACES.items()}
    lengths = (4096, 16384, 65536)
    assert rows == {"prefill": (1, lengths), "decode": (1, lengths), "batches": (8, (65536,))}
    limits = part("promises")
    assert (limits.CONTEXT, limits.TOKENS, limits.DRIFT, limits.MEMORY) == (65536, 200_000, 0.05, 1.01)
    assert script.BLOCK == 1000
    assert {*limits.OURS, *limits.SDPA, *limits.FLEX} == set(part("page").WHO)


def test_the_rival_s_mask_is_our_pattern(part):
    n, sees = 200, part("flex").flex_window_and_sinks(WINDOW, SINKS)
    seen = sees(None, None, torch.arange(n)[:, None], torch.arange(n)[None])
    assert torch.equal(seen, torch.from_numpy((Causal() & (Window(WINDOW) | Sinks(SINKS))).dense_mask(n)))


@pytest.mark.parametrize("position", [0, 3, 63, 64, 127, 128, 200, 500, 639])
def test_the_rival_s_row_reads_the_blocks_that_hold_what_it_sees_and_no_others(position, part):
    flex, keys = part("flex"), 640
    at = torch.tensor(position)
    row = flex.row_mask(WINDOW, SINKS, at, keys, torch.device("cpu"))
    at += 1  # a cache counts on before the kernel reads
    count, indices = int(row.kv_num_blocks), row.kv_indices[0, 0, 0].tolist()
    seen = torch.tensor([bool(row.mask_mod(0, 0, torch.tensor(0), torch.tensor(key))) for key in range(keys)])
    pattern = Causal() & (Window(WINDOW) | Sinks(SINKS))
    assert torch.equal(seen, torch.from_numpy(pattern.dense_mask(keys))[position])
    assert sorted(indices[:count]) == sorted({key // flex.BLOCK for key in seen.nonzero()[:, 0].tolist()})


def test_a_rival_that_reads_some_queries_of_a_text_is_refused(part):
    with pytest.raises(ValueError, match="2 queries stand over 5 keys"):
        part("flex").mask_by_blocks(window=4, sinks=1, q_length=2, kv_length=5, device=torch.device("cpu"))


def test_twins_share_the_weights_and_nothing_else(family):
    twin, sparse = family.twin("sdpa"), family.sparse
    for one in (twin, sparse):
        pairs = zip(family.model.parameters(), one.parameters(), strict=True)
        assert all(mine is yours for mine, yours in pairs) and one is not family.model
    names = [m.config._attn_implementation for m in (family.model, family.exact, twin, sparse)]
    assert names == ["eager", "eager", "sdpa", "gossamer"]
    assert family.exact.dtype == torch.float32 and family.model.dtype == torch.bfloat16
    other = family.at(Setting(replace(family.setting.config, batch=3)))
    assert other.sparse is sparse and other.setting.config.batch == 3


def judged(part, family, job: str, name: str) -> list[str | None]:
    """What the gate of a job says of one contender, length after length."""
    held = {}
    case = getattr(part(job), f"{job}_case")(family, held)
    (contender,) = (c for c in case.contenders if c.name == name)
    found = []
    for length in case.lengths:
        step = contender.prepare(length)
        step()
        found.append(contender.fault_at(length, step))
        assert ((name, length) in held) == (found[-1] is None)
    return found


RUN_HERE = [("prefill", name) for name in ("sdpa", "flex", "gossamer")] + [
    ("decode", name) for name in ("sdpa", "sdpa-compiled", "flex", "flex-compiled", "gossamer", "gossamer-graph")
]


@pytest.mark.parametrize(("job", "name"), RUN_HERE)
def test_everyone_who_runs_here_passes_the_gate(job, name, part, family):
    assert judged(part, family, job, name) == [None, None]


@pytest.mark.parametrize("job", ["prefill", "decode"])
@pytest.mark.parametrize(
    "wrong", [Window(WINDOW), Window(WINDOW - 8) | Sinks(SINKS), Window(WINDOW + 8) | Sinks(SINKS), Causal()]
)
def test_a_model_that_sees_something_else_is_named(job, wrong: Pattern, part, family, monkeypatch):
    family._made["sparse"] = sparsify(family._twin(), wrong)
    if job == "decode":
        right = part("decode").evicting_cache
        monkeypatch.setattr(part("decode"), "evicting_cache", lambda patterns: right([Causal() & wrong] * 2))
    assert "off those in float32" in judged(part, family, job, "gossamer")[0]


def test_a_position_that_is_one_too_far_is_named(part, family, monkeypatch):
    def late(forward, cache):
        def after(token):
            position = torch.full((1, 1), int(cache.get_seq_length()) + 8)
            return forward(
                input_ids=token[:, None], position_ids=position, past_key_values=cache, use_cache=True
            ).logits[:, -1]  # fmt: skip

        return after

    monkeypatch.setattr(part("decode"), "one_by_one", late)
    assert "off those in float32" in judged(part, family, "decode", "sdpa")[0]


def test_two_who_disagree_about_a_text_too_long_for_the_formula_are_both_named(part, family):
    judge, pattern = part("prefill").PrefillJudge(family, {}), Causal()
    tokens = part("models").text(family.setting, 384)
    good, bad = part("prefill").Prefill(family.twin("sdpa"), tokens), part("prefill").Prefill(family.sparse, tokens)
    assert judge.fault("sdpa", pattern, 384, good) is None
    assert judge.fault("flex-dense", pattern, 384, bad).startswith("logits of flex-dense and sdpa differ by")
    assert list(judge.held) == [("sdpa", 384)]


def test_each_layer_s_keys_are_the_same_whoever_asks_and_caches_hold_them(part, family):
    decode, cache_bytes = part("decode"), part("models").cache_bytes
    every = list(decode.drawn_keys(family.setting, 256))
    assert len(every) == 2 and not torch.equal(every[0][0], every[1][0])
    growing, static, evicting = (getattr(decode, n)(family, 256) for n in ("growing", "static", "evicting"))
    for layer, (keys, values) in enumerate(every):
        assert torch.equal(growing.layers[layer].keys, keys) and torch.equal(growing.layers[layer].values, values)
        assert torch.equal(static.layers[layer].keys[:, :, :256], keys)
    token = 2 * 2 * 2 * 16 * 2  # layers, keys and values, key heads, width, bytes
    assert [cache_bytes(cache) for cache in (growing, static)] == [256 * token, (256 + decode.ROOM) * token]
    assert cache_bytes(evicting) == (WINDOW + SINKS) * token and evicting.get_seq_length() == 256


def race(script, part, seconds: dict[tuple[str, int], float], held=None, case: str = DECODING):
    rows = tuple(
        Measurement(case, name, n, seconds=s, fastest=0.9 * s, slowest=1.1 * s, repeats=7, peak_bytes=2**30)
        for (name, n), s in seconds.items()
    )
    nobody = (Absence(case, "sdpa", 4096, "failed", "no kernel"),)
    results = Results(script.DECODE, this_machine(), "2026-01-01", rows or nobody)
    sizes = {at: 2**20 for at in seconds} if held is None else held
    return part("records").Race(results, sizes, "5.23.0")


def test_our_fastest_is_held_against_the_fastest_of_each_rival(script, part):
    times = {"sdpa": 9.0, "sdpa-compiled": 3.0, "flex": 8.0, "flex-compiled": 1.8, "gossamer": 4.0}
    seconds = {(name, 65536): 1e-3 * s for name, s in (times | {"gossamer-graph": 2.0}).items()}
    over_sdpa, over_flex, _ = script.promises(part("records").Report({"decode": race(script, part, seconds)}))
    assert (over_sdpa.measured, over_sdpa.kept) == (pytest.approx(1.5), True)
    assert (over_flex.measured, over_flex.kept) == (pytest.approx(0.9), False)
    assert "decoding of one token, batch 1, 65,536 tokens" in over_flex.text


def test_our_cache_may_not_be_larger_behind_a_longer_text(script, part):
    for longer, measured, kept in ((100, 1.0, True), (101, 1.01, False), (None, None, False)):
        held = {("gossamer-graph", 4096): 100, ("sdpa", 4096): 1, ("sdpa", 65536): 16}
        held |= {("gossamer-graph", 65536): longer} if longer else {}
        verdict = list(script.promises(part("records").Report({"decode": race(script, part, {}, held)})))[-1]
        assert (verdict.measured, verdict.kept) == (measured, kept)


@pytest.mark.parametrize(
    ("last", "held", "count", "kept"),
    [
        (1.04, 100, 200, [True, True]),
        (1.06, 100, 200, [False, True]),
        (0.94, 100, 200, [False, True]),
        (1.00, 102, 200, [True, False]),
        (1.00, 100, 199, [False, False]),  # cut short
    ],
)
def test_text_without_end_must_be_whole_and_flat(last, held, count, kept, script, part):
    seconds, sizes = (1.0,) * (count - 1) + (last,), (100,) * (count - 1) + (held,)
    told = part("records").Endless(this_machine(), "2026-01-01", "5.23.0", 2048, 1000, seconds, sizes)
    assert [p.kept for p in script.promises(part("records").Report(endless=told))] == kept
    assert part("records").Report.from_sections(part("records").Report(endless=told).sections()).endless == told


def test_before_anything_was_measured_nothing_is_kept(script, part, tmp_path):
    nothing = race(script, part, {})
    page = script.write(part("records").Report({"decode": nothing}), tmp_path)
    assert page.count("| not measured | NO |") == 3 and "sdpa failed: no kernel" in page
    assert script.earlier(tmp_path).races == {"decode": nothing}


def test_a_text_whose_first_tokens_are_wrong_is_not_measured(script, part, family):
    endless = part("endless")
    assert endless.fault(family, 2 * WINDOW) is None
    family._made["compiled"] = sparsify(family._twin(), Window(2))
    assert "less likely than another" in endless.fault(family, 2 * WINDOW)
    (told,) = script.run_endless(family, 40, 10, this_machine())
    assert "less likely" in told.fault and not told.seconds
    page = script.page(part("records").Report(endless=told), [])
    assert "failed: token" in page


def test_blocks_are_of_so_many_tokens_behind_a_warm_up(part, family, monkeypatch):
    endless, written = part("endless"), []
    write = endless._write
    monkeypatch.setattr(
        endless, "_write", lambda tokens, count, device: written.append(count) or write(tokens, 2, device)
    )
    blocks = endless.blocks(family, 2 * WINDOW, 50)
    seconds, held = next(blocks)
    assert written == [50, 50] and 0 < seconds < 1 and held >= 0


@pytest.fixture
def tiny(script, config, monkeypatch) -> ModuleType:
    def small(config_: BenchConfig) -> BenchConfig:
        lengths = (32, 64) if len(config_.model.lengths) > 1 else (64,)
        shape = replace(config, window=16, model=replace(config.model, lengths=lengths, layers=1))
        return replace(shape, batch=config_.batch)

    monkeypatch.setattr(script, "small", small)
    return script


def test_a_rehearsal_leaves_its_files_and_keeps_what_an_earlier_one_measured(tiny, tmp_path, capsys):
    flags = ["--small", "--folder", str(tmp_path), "--commit", "abc1234"]
    assert tiny.main([*flags, "--only", "endless", "prefill"]) == 1
    assert tiny.main([*flags, "--only", "batches", "decode", "--without", "flex", "flex-compiled"]) == 1
    record = json.loads((tmp_path / "h200_huggingface.json").read_text())
    assert list(record["sections"]) == ["prefill", "decode", "batches", "endless"]
    assert len(record["promises"]) == 3 + 3 + 2 + 2
    flat = [p["kept"] for p in record["promises"] if "the cache behind" in p["text"]]
    assert flat == [True, True]
    page = (tmp_path / "h200_huggingface.md").read_text()
    assert page in capsys.readouterr().out and page.count("commit abc1234") == 4
    assert page.count("cudnn skipped: runs on CUDA only") == 2 and page.count("| 64 | gossamer-graph | ") == 2
    decode = page.partition("## Decode")[2].partition("## Endless")[0]
    assert "| flex" not in decode and "| 64 | flex | " in page
    for picture in ("h200_huggingface.png", "h200_huggingface_endless.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    again = tiny.earlier(tmp_path)
    assert json.loads(json.dumps(again.sections())) == record["sections"] and len(again.endless.seconds) == 4


def test_a_run_that_is_cut_leaves_what_it_has_finished(tiny, part, tmp_path, monkeypatch):
    prefill, count = part("prefill"), []
    judge = prefill.PrefillJudge.fault

    def cut(self, name, pattern, length, step):
        if length == 64:
            raise KeyboardInterrupt
        count.append(name)
        return judge(self, name, pattern, length, step)

    monkeypatch.setattr(prefill.PrefillJudge, "fault", cut)
    with pytest.raises(KeyboardInterrupt):
        tiny.main(["--small", "--folder", str(tmp_path), "--only", "prefill"])
    kept = tiny.earlier(tmp_path).races["prefill"].results
    assert count == ["sdpa", "flex", "gossamer"]
    assert {(m.contender, m.length) for m in kept.measurements("prefill")} == {(name, 32) for name in count}


def test_a_rehearsal_is_the_same_model_made_small(script):
    rows = {name: script.small(config) for name, (config, _) in script.RACES.items()}
    assert rows["decode"].model.lengths == (32, 128, 512) and rows["batches"].batch == 8
    assert {(c.device, c.window, c.heads, c.key_heads) for c in rows.values()} == {("cpu", 16, 4, 2)}


def test_one_token_among_several_is_timed(part, monkeypatch):
    decode, calls = part("decode"), []
    monkeypatch.setattr(decode, "wall_seconds", lambda step, device: step() and 4.0)
    assert decode.token_clock(torch.device("cpu"))(partial(calls.append, 1)) == 4.0 / decode.TOKENS
    assert len(calls) == decode.TOKENS
