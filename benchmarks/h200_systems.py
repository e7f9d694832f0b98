"""Measures Longformer, BigBird, Reformer and block-sparse attention on one H200, and says whether promises hold.

    python benchmarks/h200_systems.py [--only blocks longformer bigbird reformer] [--without fa4 ...]
                                      [--folder FOLDER] [--commit COMMIT] [--small]

Each system's attention module runs forward and backward beside the module of its name in transformers, with the same
weights; block-sparse attention beside dense cuDNN, FlexAttention and FlashAttention-4. Nobody is timed whose numbers
are wrong. `--only` runs some sections and keeps what FOLDER holds of the others; `--without` leaves contenders out;
`--commit` names the code where its copy has no history; `--small` is a rehearsal that any machine can run. Writes
`h200_systems.json` and `.md` after each section, and a picture. Exits with 1 if a promise is broken.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path

from systems.blocks import CONTENDERS, block_cases
from systems.modules import system_case
from systems.page import page
from systems.picture import save
from systems.promises import Runs, promises

from gossamer.atomic import write_file
from gossamer.bench import BenchConfig, Results, show_progress
from gossamer.bench.case import Case
from gossamer.bench.driver import measure
from gossamer.bench.setting import Setting
from gossamer.machine import this_machine

RESULTS = Path(__file__).parent / "results"
NAME = "h200_systems"

BASE = BenchConfig(tokens=65536, repeats=10, warmup=2, seconds=6.0, precision="bf16", device="cuda")
MODULES = replace(BASE, heads=12, head_width=64, window=512, lengths=(4096, 16384, 65536))
BLOCKS = replace(BASE, heads=16, head_width=128, lengths=(16384,))


def module_cases(name: str, setting: Setting) -> tuple[Case, ...]:
    """The cases of a system; its file needs transformers, and is read when it is wanted."""
    system = import_module(f"systems.{name}")
    cases = (system_case(getattr(system, name.upper()), setting),)
    return (*cases, system.attention_case(setting)) if hasattr(system, "attention_case") else cases


SECTIONS: dict[str, tuple[BenchConfig, Callable[[Setting], tuple[Case, ...]]]] = {
    "blocks": (BLOCKS, block_cases),
    "longformer": (MODULES, partial(module_cases, "longformer")),
    "bigbird": (MODULES, partial(module_cases, "bigbird")),
    "reformer": (MODULES, partial(module_cases, "reformer")),
}


def small(config: BenchConfig) -> BenchConfig:
    """The same at a size that any machine can rehearse."""
    lengths = (1280,)
    shape = {"heads": 2, "head_width": 16, "tokens": 1280, "lengths": lengths, "window": 64}
    return replace(config, **shape, repeats=1, warmup=1, device="cpu")


def measured(config: BenchConfig, cases: Callable[[Setting], tuple[Case, ...]], asked: argparse.Namespace) -> Results:
    """Every contender of a section that is wanted."""
    setting = Setting(small(config) if asked.small else config)
    outcomes = []
    for case in cases(setting):
        case = replace(case, contenders=tuple(c for c in case.contenders if c.name not in asked.without))
        outcomes += measure(case, setting, lambda outcome: None)
    date, machine = datetime.now(UTC).isoformat(timespec="seconds"), replace(this_machine(), commit=asked.commit)
    return Results(setting.config, machine, date, tuple(outcomes))


def earlier(folder: Path) -> Runs:
    """The sections that an earlier call has measured."""
    path = folder / f"{NAME}.json"
    sections = json.loads(path.read_text(encoding="utf-8"))["sections"] if path.is_file() else {}
    return {name: Results.from_record(record) for name, record in sections.items()}


def write(runs: Runs, folder: Path) -> str:
    """Leaves what is known so far in the folder; returns the page."""
    runs = {name: runs[name] for name in SECTIONS if name in runs}
    verdicts = list(promises(runs))
    record = {
        "sections": {name: results.record() for name, results in runs.items()},
        "promises": [asdict(promise) for promise in verdicts],
    }
    text = page(runs, verdicts)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / f"{NAME}.json", f"{json.dumps(record, indent=1)}\n".encode())
    write_file(folder / f"{NAME}.md", text.encode())
    save(runs, folder / f"{NAME}.png")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    flags.add_argument("--without", nargs="+", choices=[*CONTENDERS, "transformers"], default=[])
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    show_progress()
    runs = earlier(asked.folder)
    for name in (name for name in SECTIONS if name in asked.only):
        runs[name] = measured(*SECTIONS[name], asked)
        write(runs, asked.folder)
    print(write(runs, asked.folder))
    return 0 if all(promise.kept for promise in promises(runs)) else 1


if __name__ == "__main__":
    sys.exit(main())
