"""Ratios, memory saved and crossovers against numbers worked out by hand."""

import json
from dataclasses import replace

import pytest

from gossamer.bench.floor import Ceilings, Work
from gossamer.bench.results import CLAIMED_MEMORY_SAVED, CLAIMED_SPEEDUP, Measurement, Results

from .conftest import CASE, timed


def of(results: Results, contender: str, length: int) -> Measurement:
    found = results.measurement(CASE, contender, length)
    assert found is not None
    return found


def with_more(results: Results, *more: Measurement) -> Results:
    return replace(results, outcomes=(*results.outcomes, *more))


def test_speedup_is_dense_time_over_own_time(results):
    assert results.speedup(of(results, "window", 4096)) == pytest.approx(4)
    assert results.speedup(of(results, "window", 512)) == pytest.approx(0.5)
    assert results.speedup(of(results, "window", 4096), over=("naive",)) == pytest.approx(16)


def test_speedup_is_over_the_fastest_dense_kernel(results):
    faster = timed("cudnn", 4096, 1e-9 * 4096 * 1024)
    results = with_more(results, faster)
    assert results.speedup(of(results, "window", 4096)) == pytest.approx(1)


def test_memory_saved_is_a_share_of_the_naive_softmaxs(results):
    assert results.memory_saved(of(results, "window", 4096)) == pytest.approx(1 - 64 / 1024)
    assert results.memory_saved(of(results, "window", 4096), over=("sdpa",)) == pytest.approx(0)


def test_nothing_is_said_where_a_rival_is_missing(results):
    alone = timed("window", 65536, 1.0)
    results = with_more(results, alone)
    assert results.speedup(alone) is None and results.memory_saved(alone) is None


def test_the_crossover_is_where_the_two_power_laws_meet(results):
    assert results.crossover(CASE, "window") == pytest.approx(1024)
    assert results.overtaking(CASE, "window") == "faster than dense from 1,024 tokens on"


def test_there_is_no_crossover_for_the_slower_the_dense_and_the_unmeasured(results):
    assert [results.crossover(CASE, name) for name in ("naive", "sdpa", "flex")] == [None] * 3
    assert results.overtaking(CASE, "naive") is None


def test_faster_everywhere_is_said_in_words(results):
    fast = tuple(timed("local-attention", n, 1e-12) for n in (512, 2048))
    results = with_more(results, *fast)
    assert results.crossover(CASE, "local-attention") == 512
    assert results.overtaking(CASE, "local-attention") == "faster than dense at every length measured"


def test_a_lead_that_is_lost_again_is_no_crossover(results):
    fickle = (
        timed("local-attention", 512, 1e-12),
        timed("local-attention", 2048, 1e-12),
        timed("local-attention", 4096, 10.0),
    )
    results = with_more(results, *fickle)
    assert results.crossover(CASE, "local-attention") is None


def test_the_claims_are_the_documents_table():
    assert CLAIMED_SPEEDUP == {512: 4.0, 1024: 7.7, 2048: 16.2, 4096: 32.3}
    assert CLAIMED_MEMORY_SAVED == {512: 0.75, 1024: 0.875, 2048: 0.9375, 4096: 0.96875}


def test_the_json_holds_what_is_needed_to_repeat_the_run(results, tmp_path):
    results.save(tmp_path / "new" / "bench.json")
    record = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert record["date"] == "2026-01-01"
    assert record["config"]["threads"] == 2 and record["config"]["model"]["layers"] == 4
    assert {"cpu", "cores", "gpu", "torch", "python", "triton", "gossamer"} <= set(record["machine"])
    assert record["crossover"][CASE]["window"] == pytest.approx(1024)
    row = next(r for r in record["measurements"] if (r["contender"], r["length"]) == ("document", 4096))
    assert row["seconds"] > row["fastest"] and row["repeats"] == 5
    assert row["speedup_over_dense"] == pytest.approx(4) and row["document_claims_speedup"] == 32.3
    dense = next(r for r in record["measurements"] if (r["contender"], r["length"]) == ("sdpa", 4096))
    assert dense["document_claims_speedup"] is None


def test_who_was_absent_is_kept_apart_from_what_was_measured(results):
    assert results.contenders(CASE) == ("sdpa", "naive", "window", "document", "flex")
    assert [(a.length, a.status) for a in results.absences(CASE, "document")] == [
        (512, "failed"),
        (1024, "failed"),
    ]
    assert [m.length for m in results.measurements(CASE, "naive")] == [512, 2048, 4096]
    assert len(results.record()["absences"]) == 5


def test_an_outcome_reads_as_one_line(results):
    assert str(of(results, "window", 4096)) == "attention forward, 4,096 tokens, window: 4.19 ms"
    absent = results.absences(CASE, "flex")[0]
    assert str(absent) == "attention forward, 512 tokens, flex skipped: runs on CUDA only"


def test_the_best_rival_does_the_same_or_more(results):
    narrower = timed("flex-document", 4096, 1e-9)
    results = with_more(results, timed("flex", 4096, 1e-3), timed("fa4", 4096, 2e-3), narrower)
    assert results.best_rival(of(results, "window", 4096)).contender == "flex"
    assert results.best_rival(of(results, "document", 4096)) is narrower
    assert results.best_rival(of(results, "window", 2048)).contender == "sdpa"
    assert results.best_rival(of(results, "flex", 4096)) is None


def test_the_share_of_the_floor_is_its_time_over_ours(results):
    results = replace(results, ceilings=Ceilings(operations=1e12, bytes=1e12))
    m = replace(timed("window", 64, 4e-3), work=Work(operations=1e9, bytes=2e9))
    assert results.share_of_floor(m) == pytest.approx(0.5)
    assert results.share_of_floor(timed("window", 64, 4e-3)) is None


def test_a_record_read_back_says_the_same(results):
    results = with_more(results, replace(timed("flex", 4096, 1.0), setup_seconds=0.5, work=Work(3.0, 4.0)))
    for ceilings in (None, Ceilings(1e12, 2e12)):
        record = json.loads(json.dumps(replace(results, ceilings=ceilings).record()))
        again = Results.from_record(record)
        assert json.loads(json.dumps(again.record())) == record
        assert again.config == results.config and set(again.outcomes) == set(results.outcomes)
