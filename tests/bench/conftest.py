"""Results made by hand, whose ratios can be worked out on paper."""

import pytest

from gossamer.bench.config import BenchConfig
from gossamer.bench.results import Absence, Measurement, Results
from gossamer.machine import this_machine

CASE = "attention forward"


def timed(contender: str, length: int, seconds: float, mebibytes: int = 1) -> Measurement:
    return Measurement(
        CASE,
        contender,
        length,
        seconds=seconds,
        fastest=0.9 * seconds,
        slowest=1.2 * seconds,
        repeats=5,
        peak_bytes=mebibytes * 2**20,
    )


@pytest.fixture
def results() -> Results:
    """Dense is quadratic, the window linear and equal at 1,024 tokens, naive takes four times dense."""
    rows = []
    for n in (512, 1024 * 2, 4096):
        rows += [
            timed("sdpa", n, 1e-9 * n * n, mebibytes=n // 64),
            timed("naive", n, 4e-9 * n * n, mebibytes=n * n // 2**14),
            timed("window", n, 1e-9 * n * 1024, mebibytes=n // 64),
        ]
    wrong = "3 wrong pairs; first: head 0, query 9 sees key 1"
    large = "needs 192.0 GiB, allowed are 18.0 (--memory-gib)"
    rows.append(timed("document", 4096, 1e-9 * 4096 * 1024, mebibytes=64))
    rows += [Absence(CASE, "document", n, "failed", wrong) for n in (512, 1024)]
    rows += [Absence(CASE, "flex", n, "skipped", "runs on CUDA only") for n in (512, 1024)]
    rows.append(Absence(CASE, "naive", 65536, "skipped", large))
    config = BenchConfig(device="cpu", precision="fp32", threads=2)
    return Results(config, this_machine(), "2026-01-01", tuple(rows))
