"""The H200 script: the promises it holds, its judgement on figures made by hand, and a rehearsal on this machine."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from gossamer.bench import Results
from gossamer.bench.results import Measurement
from gossamer.machine import this_machine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "h200_attention.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("h200_attention", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(config, *rows: tuple[str, str, int, float]) -> Results:
    """Results with the given (case, contender, length, seconds)."""
    outcomes = tuple(
        Measurement(case, who, n, seconds=s, fastest=s, slowest=s, repeats=1, peak_bytes=0) for case, who, n, s in rows
    )
    return Results(config, this_machine(), "2026-01-01", outcomes)


def test_it_measures_exactly_what_is_promised(script):
    rows = [(c.heads, c.head_width, c.window) for c in script.SECTIONS["windows"]]
    assert rows == [(h, d, w) for h, d in ((12, 64), (16, 128)) for w in (128, 256, 512)]
    assert script.OVER_FA4 == {
        (64, script.FORWARD): 1.9,
        (64, script.TRAINING): 1.6,
        (128, script.FORWARD): 1.45,
        (128, script.TRAINING): 1.35,
    }
    assert (script.GROUPS, script.DOCUMENT, script.TOKENS, script.LONG_MEMORY) == (1.4, 10, 1.25, 1.3)
    assert script.SECTIONS["document"][0].lengths == (1024, 4096, 16384, 65536)
    assert script.SECTIONS["long"][0].lengths == (1048576,)
    for configs in script.SECTIONS.values():
        for config in configs:
            assert config.precision == "bf16" and (config.tokens == 65536 or config.lengths == (1048576,))


def test_a_window_must_beat_fa4_by_its_factor_and_everyone_else(script):
    config = script.SECTIONS["windows"][1]
    times = {"window": 1.0, "flex": 1.1, "fa4": 1.95, "cudnn": 9.0}
    results = made(config, *((script.FORWARD, who, 16384, s) for who, s in times.items()))
    verdicts = {p.text: p for p in script.promises({"windows": [results]}) if p.measured is not None}
    assert [(p.measured, p.kept) for p in verdicts.values()] == [(1.95, True), (1.1, True)]
    slower = made(config, *((script.FORWARD, who, 16384, 0.97 * s if who == "fa4" else s) for who, s in times.items()))
    assert [p.kept for p in script.promises({"windows": [slower]})][:2] == [False, True]


def test_what_was_not_measured_is_not_kept(script):
    every = {name: [made(config) for config in configs] for name, configs in script.SECTIONS.items()}
    verdicts = list(script.promises(every))
    assert len(verdicts) > 25 and all(p.measured is None and not p.kept for p in verdicts)


def test_the_document_s_pattern_is_held_against_dense_at_every_length(script):
    config = script.SECTIONS["document"][0]
    rows = [(case, "document", n, 1.0) for case in (script.FORWARD, script.TRAINING) for n in config.lengths]
    rows += [(case, "flash", n, 2.0) for case in (script.FORWARD, script.TRAINING) for n in config.lengths]
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


def test_memory_counts_inputs_and_what_they_would_take_at_least(script):
    results = made(script.SECTIONS["long"][0], (script.TRAINING, "window", 2**20, 1.0))
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
    assert "4:2 heads × 16" in page and "fa4 skipped: runs on CUDA only" in page and "| 128 | window | " in page
    assert page.count("Left out of this run: document, fa4.") == 1
    assert (tmp_path / "h200_attention.png").read_bytes().startswith(b"\x89PNG")
    assert "## Launch" in capsys.readouterr().out
