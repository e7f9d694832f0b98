"""Measures what Gossamer promises for models of transformers on one H200, and says whether it holds.

    python benchmarks/h200_huggingface.py [--only prefill decode batches endless] [--without flex-dense ...]
                                          [--folder FOLDER] [--commit COMMIT] [--small]

A Llama of 1.2 billion random weights reads texts of up to 65,536 tokens and writes behind them, dense by sdpa and
FlexAttention, and sparse by FlexAttention and `sparsify`; then it writes 200,000 tokens without end. `--only` runs some
sections and keeps what FOLDER holds of the others; `--without` leaves contenders out; `--commit` names the code where
its copy has no history; `--small` is a rehearsal that any machine can run. Writes `h200_huggingface.json` and `.md`
after each result, and two pictures after each section. Exits with 1 if a promise is broken.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from huggingface import endless
from huggingface.decode import decode_case
from huggingface.models import CacheBytes, Family
from huggingface.page import WHO, page
from huggingface.pictures import save_endless, save_races
from huggingface.prefill import prefill_case
from huggingface.promises import CONTEXT, TOKENS, promises
from huggingface.records import ENDLESS, Endless, Race, Report

from gossamer.atomic import write_file
from gossamer.bench import BenchConfig, ModelBench, Results, show_progress
from gossamer.bench.case import Case
from gossamer.bench.driver import measure
from gossamer.bench.results import Outcome
from gossamer.bench.setting import Setting
from gossamer.machine import Machine, this_machine

RESULTS = Path(__file__).parent / "results"
NAME = "h200_huggingface"
LENGTHS = (4096, 16384, CONTEXT)
CONFIG = BenchConfig(
    heads=32,
    key_heads=8,
    head_width=64,
    window=1024,
    model=ModelBench(lengths=LENGTHS, layers=16, vocabulary=128256),
    repeats=5,
    seconds=8.0,
    precision="bf16",
    device="cuda",
)
DECODE = replace(CONFIG, repeats=7, warmup=4)  # a step is recorded at the third call, or at the fourth
Races = dict[str, tuple[BenchConfig, Callable[[Family, CacheBytes], Case]]]
RACES: Races = {
    "prefill": (CONFIG, prefill_case),
    "decode": (DECODE, decode_case),
    "batches": (replace(DECODE, batch=8, model=replace(CONFIG.model, lengths=(CONTEXT,))), decode_case),
}
SECTIONS = (*RACES, ENDLESS)
BLOCK = 1000
"""Tokens of the text without end for which one figure is told."""
WRITE_EVERY = 20
"""Blocks after which what is known is written."""


def small(config: BenchConfig) -> BenchConfig:
    """The same model and texts at a size that any machine can rehearse."""
    lengths = tuple(n // 128 for n in config.model.lengths)
    model = ModelBench(lengths=lengths, layers=2, vocabulary=512)
    shape = {"heads": 4, "key_heads": 2, "head_width": 16, "window": config.window // 64}
    return replace(config, **shape, model=model, repeats=1, warmup=1, device="cpu")


def run_race(
    family: Family, made: Callable[[Family, CacheBytes], Case], without: Sequence[str], machine: Machine
) -> Iterator[Race]:
    """The race after each outcome."""
    held: CacheBytes = {}
    case, date = made(family, held), now()
    case = replace(case, contenders=tuple(c for c in case.contenders if c.name not in without))
    outcomes: tuple[Outcome, ...] = ()
    with torch._dynamo.config.patch(recompile_limit=64):  # beyond it FlexAttention would quietly run uncompiled
        for outcome in measure(case, family.setting, lambda outcome: None):
            outcomes += (outcome,)
            yield Race(Results(family.setting.config, machine, date, outcomes), held, version("transformers"))


def run_endless(family: Family, tokens: int, size: int, machine: Machine) -> Iterator[Endless]:
    """The text without end after every few blocks, up to so many tokens."""
    prompt = 2 * family.setting.config.window
    told = Endless(machine, now(), version("transformers"), prompt, size)
    wrong = endless.fault(family, prompt)
    if wrong is not None:
        yield replace(told, fault=wrong)
        return
    for number, (seconds, held) in enumerate(islice(endless.blocks(family, prompt, size), tokens // size), 1):
        told = replace(told, seconds=(*told.seconds, seconds), held=(*told.held, held))
        if number % WRITE_EVERY == 0 or number == tokens // size:
            yield told


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def earlier(folder: Path) -> Report:
    """What an earlier call has measured."""
    path = folder / f"{NAME}.json"
    return (
        Report.from_sections(json.loads(path.read_text(encoding="utf-8"))["sections"]) if path.is_file() else Report()
    )


def write(report: Report, folder: Path) -> str:
    """Leave what is known so far in the folder; returns the page."""
    report.races = {name: report.races[name] for name in RACES if name in report.races}
    verdicts = list(promises(report))
    record = {"sections": report.sections(), "promises": [asdict(promise) for promise in verdicts]}
    text = page(report, verdicts)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / f"{NAME}.json", f"{json.dumps(record, indent=1)}\n".encode())
    write_file(folder / f"{NAME}.md", text.encode())
    return text


def draw(report: Report, folder: Path) -> None:
    save_races(report, folder / f"{NAME}.png")
    if report.endless:
        save_endless(report.endless, folder / f"{NAME}_endless.png")


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    flags.add_argument("--without", nargs="+", choices=WHO, default=[])
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    show_progress()
    report, machine = earlier(asked.folder), replace(this_machine(), commit=asked.commit)
    shrunk = small if asked.small else lambda config: config
    family = Family(Setting(shrunk(CONFIG)))
    for name in (name for name in RACES if name in asked.only):
        config, made = RACES[name]
        for race in run_race(family.at(Setting(shrunk(config))), made, asked.without, machine):
            report.races[name] = race
            write(report, asked.folder)
        draw(report, asked.folder)
    if ENDLESS in asked.only:
        tokens, size = (40, 10) if asked.small else (TOKENS, BLOCK)
        for told in run_endless(family, tokens, size, machine):
            report.endless = told
            write(report, asked.folder)
        draw(report, asked.folder)
    print(write(report, asked.folder))
    return 0 if all(promise.kept for promise in promises(report)) else 1


if __name__ == "__main__":
    sys.exit(main())
