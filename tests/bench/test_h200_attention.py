"""The H200 script: the promises it holds, its judgement on figures made by hand, and a rehearsal on this machine."""

import importlib
import importlib.util
import json
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from gossamer.bench import Results
from gossamer.bench.floor import Ceilings, Work
from gossamer.bench.results import Measurement
from gossamer.machine import this_machine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "h200_attention.py"


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as it is where the script runs
    spec = importlib.util.spec_from_file_location("h200_attention", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def limits(script) -> ModuleType:
    return importlib.import_module("h200_promises")


def made(config, *rows: tuple[str, str, int, float]) -> Results:
    """Results with the given (case, contender, length, seconds)."""
    outcomes = tuple(
        Measurement(case, who, n, seconds=s, fastest=s, slowest=s, repeats=1, peak_bytes=0) for case, who, n, s in rows
    )
    return Results(config, this_machine(), "2026-01-01", outcomes)


def test_it_measures_exactly_what_is_promised(script, limits):
    rows = [(c.heads, c.head_width, c.window) for c in script.SECTIONS["windows"]]
    assert rows == [(h, d, w) for h, d in ((12, 64), (16, 128)) for w in (128, 256, 512)]
    assert limits.OVER_FA4 == {
        (64, limits.FORWARD): 1.9,
        (64, limits.TRAINING): 1.6,
        (128, limits.FORWARD): 1.45,
        (128, limits.TRAINING): 1.35,
    }
    assert (limits.GROUPS, limits.DOCUMENT, limits.TOKENS, limits.LONG_MEMORY) == (1.4, 10, 1.25, 1.3)
    assert (limits.DECODE_BATCH, limits.DECODE_BANDWIDTH, limits.DECODE_GROWTH) == (64, 0.7, 1.15)
    assert (limits.DECODE_KEYS, limits.DECODE_FEWER_KEYS) == (131072, 32768)
    assert script.SECTIONS["document"][0].lengths == (1024, 4096, 16384, 65536)
    assert script.SECTIONS["long"][0].lengths == (1048576,)
    for name, configs in script.SECTIONS.items():
        for config in configs:
            assert config.precision == "bf16"
            assert name == "decode" or config.tokens == 65536 or config.lengths == (1048576,)


def test_decoding_is_measured_on_both_shapes_and_three_batches(script):
    rows = [(c.heads, c.key_heads, c.head_width, c.batch) for c in script.SECTIONS["decode"]]
    assert rows == [(h, g, d, b) for h, g, d in ((12, None, 64), (32, 8, 128)) for b in (1, 8, 64)]
    for config in script.SECTIONS["decode"]:
        assert (config.window, config.lengths, config.cases) == (512, (8192, 32768, 131072), ("decode",))
        assert "window+strided" in config.contenders and config.tokens is None


def decoded(script, limits, fewer: float, more: float, batch: int = 64) -> Results:
    """Decoding in so many seconds, of 4 and 8 GB that must be moved, where a copy moves 4 TB/s."""
    config = replace(script.SECTIONS["decode"][2], batch=batch)
    results = made(config, *((limits.DECODE, "window+strided", n, s) for n, s in ((32768, fewer), (131072, more))))
    work = {32768: Work(1.0, 4e9), 131072: Work(1.0, 8e9)}
    rows = tuple(replace(m, work=work[m.length]) for m in results.outcomes)
    return replace(results, outcomes=rows, ceilings=Ceilings(1e15, 4e12))


def test_decoding_must_move_what_is_seen_at_the_memory_s_pace_at_any_length(script, limits):
    def verdicts(*seconds: float) -> list[tuple[float, bool]]:
        found = script.promises({"decode": [decoded(script, limits, *seconds)]})
        return [(pytest.approx(p.measured), p.kept) for p in found]

    assert verdicts(1e-3, 2e-3) == [(1.0, True), (1.0, True)]
    assert verdicts(1.25e-3, 2.5e-3) == [(0.8, True), (1.0, True)]
    assert verdicts(2e-3, 4e-3) == [(0.5, False), (1.0, True)]
    assert verdicts(1e-3, 2.4e-3) == [(1 / 1.2, True), (1.2, False)]
    assert not list(script.promises({"decode": [decoded(script, limits, 1.0, 1.0, batch=8)]}))
    (share, growth) = script.promises({"decode": [decoded(script, limits, 1e-3, 2e-3)]})
    assert share.text.startswith("window 512 + 1 key in 100, 12 × 64, decoding of one token, batch 64, 131,072 keys")
    assert "1.15x of what it takes at 32,768" in growth.text


def test_a_window_must_beat_fa4_by_its_factor_and_everyone_else(script, limits):
    config = script.SECTIONS["windows"][1]
    times = {"window": 1.0, "flex": 1.1, "fa4": 1.95, "cudnn": 9.0}
    results = made(config, *((limits.FORWARD, who, 16384, s) for who, s in times.items()))
    verdicts = {p.text: p for p in script.promises({"windows": [results]}) if p.measured is not None}
    assert [(p.measured, p.kept) for p in verdicts.values()] == [(1.95, True), (1.1, True)]
    slower = made(config, *((limits.FORWARD, who, 16384, 0.97 * s if who == "fa4" else s) for who, s in times.items()))
    assert [p.kept for p in script.promises({"windows": [slower]})][:2] == [False, True]


def test_what_was_not_measured_is_not_kept(script):
    every = {name: [made(config) for config in configs] for name, configs in script.SECTIONS.items()}
    verdicts = list(script.promises(every))
    assert len(verdicts) > 25 and all(p.measured is None and not p.kept for p in verdicts)


def test_the_document_s_pattern_is_held_against_dense_at_every_length(script, limits):
    config = script.SECTIONS["document"][0]
    rows = [(case, "document", n, 1.0) for case in (limits.FORWARD, limits.TRAINING) for n in config.lengths]
    rows += [(case, "flash", n, 2.0) for case in (limits.FORWARD, limits.TRAINING) for n in config.lengths]
    rows += [(case, "cudnn", n, 0.5 if n == 1024 else 3.0) for case, _, n, _ in rows[:8]]
    verdicts = {p.text.split(", ", 2)[-1]: p for p in script.promises({"document": [made(config, *rows)]})}
    assert len(verdicts) == 2 + 8
    broken = {text for text, p in verdicts.items() if not p.kept}
    assert broken == {
        "1,024 tokens, attention forward: at least 1x as fast as dense",
        "1,024 tokens, attention forward + backward: at least 1x as fast as dense",
        "16,384 tokens, attention forward + backward: at least 10x as fast as dense",
        "16,384 tokens, attention forward + backward: at least 10x as fast as FlexAttention",
    }


def test_memory_counts_inputs_and_what_they_would_take_at_least(script, limits):
    results = made(script.SECTIONS["long"][0], (limits.TRAINING, "window", 2**20, 1.0))
    tensor = 12 * 64 * 2**20 * 2
    for tensors, kept in ((4, True), (7, False)):  # above the four inputs; the least is an output and three gradients
        row = replace(results.outcomes[0], peak_bytes=tensors * tensor)
        (verdict,) = script.promises({"long": [replace(results, outcomes=(row,))]})
        assert (verdict.measured, verdict.kept) == ((4 + tensors) / 8, kept)


def test_a_rehearsal_leaves_its_files_and_keeps_what_an_earlier_one_measured(script, tmp_path, capsys):
    assert script.main(["--small", "--folder", str(tmp_path), "--only", "groups"]) == 1  # no GPU: no rival, no promise
    flags = ["--only", "launch", "--without", "fa4", "document"]
    assert script.main(["--small", "--folder", str(tmp_path), *flags]) == 1
    record = json.loads((tmp_path / "h200_attention.json").read_text())
    assert list(record["sections"]) == ["groups", "launch"]
    assert [(p["measured"] is None, p["kept"]) for p in record["promises"]] == [(True, False), (False, False)]
    page = (tmp_path / "h200_attention.md").read_text()
    assert "## Promises" in page and "## Groups" in page and "## Launch" in page
    assert "4:2 heads × 16" in page and "fa4 skipped: runs on CUDA only" in page and "| 512 | window | " in page
    assert page.count("Left out of this run: document, fa4.") == 1
    assert (tmp_path / "h200_attention.png").read_bytes().startswith(b"\x89PNG")
    assert "## Launch" in capsys.readouterr().out


def test_a_decode_rehearsal_says_what_was_decoded(script, tmp_path):
    assert script.main(["--small", "--folder", str(tmp_path), "--only", "decode", "--commit", "abc1234"]) == 1
    page = (tmp_path / "h200_attention.md").read_text()
    for heads in ("6 heads × 16", "4:2 heads × 16"):
        for batch in (1, 8, 64):
            assert f"### Decoding of one token (batch {batch}, {heads}, window 32 + 1 key in 100, fp32" in page
    assert page.count(", commit abc1234, ") == 6 and page.count("| 512 | window+strided | ") == 6
    record = json.loads((tmp_path / "h200_attention.json").read_text())
    results = [Results.from_record(r) for r in record["sections"]["decode"]]
    assert [r.machine.commit for r in results] == ["abc1234"] * 6
    assert {m.backends.forward for r in results for m in r.measurements(r.cases[0], "window+strided")} == {"tiled"}


def test_a_heading_says_what_was_launched(script, tmp_path):
    script.main(["--small", "--folder", str(tmp_path), "--only", "launch", "document"])
    page = (tmp_path / "h200_attention.md").read_text()
    assert "### Launch of attention forward (batch 1, 6 heads × 16, the document's pattern, window 16, fp32" in page
    assert "### Attention forward (256 tokens in all, 6 heads × 16, the document's pattern, fp32" in page


def test_a_run_that_is_cut_leaves_whole_files_with_what_it_has(script, tmp_path, monkeypatch):
    script.main(["--small", "--folder", str(tmp_path), "--only", "groups"])
    run, configs = script.run, []

    def cut(config):
        configs.append(config)
        if len(configs) == 3:
            raise KeyboardInterrupt
        return run(config)

    monkeypatch.setattr(script, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        script.main(["--small", "--folder", str(tmp_path), "--only", "windows"])
    assert {name: len(group) for name, group in script.earlier(tmp_path).items()} == {"windows": 2, "groups": 1}
    page = (tmp_path / "h200_attention.md").read_text()
    assert page.count("Cut short: 2 of 6 configurations ran.") == page.count("Cut short") == 1


def test_what_was_published_before_can_still_be_read(script):
    published = json.loads((script.RESULTS / "h200_attention.json").read_text())["sections"]
    for record in (record for records in published.values() for record in records):
        record["machine"].pop("commit", None)
        for row in record["measurements"]:
            row.pop("backends", None)
        results = Results.from_record(record)
        assert results.machine.commit is None
        assert all(m.backends is None for case in results.cases for m in results.measurements(case))


def test_what_is_compiled_ahead_is_each_contender_by_itself_the_slowest_first(script, monkeypatch, capsys):
    class InTurn:
        """An executor that does each job at once."""

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, config):
            job = Future()
            try:
                job.set_result(function(config))
            except ValueError as error:
                job.set_exception(error)
            return job

    def compiled(config):
        done.append((config.contenders, config.lengths))
        if config.contenders == ("window",):
            raise ValueError("no compiler")

    done = []
    monkeypatch.setattr(script, "ProcessPoolExecutor", InTurn)
    monkeypatch.setattr(script, "run", compiled)
    script.compile_ahead([*script.SECTIONS["groups"], *script.SECTIONS["long"], *script.SECTIONS["decode"]])
    assert done == [(("flex",), (16384,)), (("window",), (16384,))]
    said = capsys.readouterr().out
    assert "of 2: flex, 16,384 tokens\n" in said and "of 2: window, 16,384 tokens: no compiler\n" in said
