"""Measures DeepSeek sparse attention on one H200, part by part and whole, and says whether promises hold.

    python benchmarks/h200_dsa.py [--only latents index layer loss blocks] [--tokens 32768 131072]
                                  [--folder FOLDER] [--commit COMMIT] [--small] [--tilelang FOLDER]

`--only` runs some sections and keeps what FOLDER holds of the others; `--commit` names the code where its copy has no
history; `--small` is a rehearsal that any machine can run; `--tilelang` names `examples/deepseek_v32` of a checkout of
TileLang, whose kernels are then measured beside ours if its package is installed. Writes `h200_dsa.json` and `.md`
after each section. Exits with 1 if a promise is broken.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from dsa.blocks import block_figures
from dsa.figures import Figure
from dsa.index import index_figures
from dsa.latents import latent_figures
from dsa.layer import layer_figures
from dsa.loss import loss_figures
from dsa.page import page, promises
from dsa.problem import Grouped, Problem
from record import Machines, earlier, leave

from gossamer.atomic import write_file
from gossamer.machine import this_machine

RESULTS = Path(__file__).parent / "results"
NAME = "h200_dsa"
TOKENS = (32_768, 131_072)
SECTIONS: dict[str, Callable[[Problem], Iterator[Figure]]] = {
    "latents": latent_figures,
    "index": index_figures,
    "layer": layer_figures,
    "loss": loss_figures,
    "blocks": block_figures,
}
SMALL = Problem(
    96, torch.device("cpu"), heads=4, chosen=32, index_heads=4, index_width=16, repeats=1,
    grouped=Grouped(heads=4, key_heads=2, width=16, block=16, chosen=4),
)  # fmt: skip


def write(figures: Sequence[Figure], machines: Machines, folder: Path) -> str:
    """Leaves what is known so far in the folder; returns the page."""
    text = page(figures, machines)
    leave(folder / f"{NAME}.json", figures, machines, {"promises": [*promises(figures)]})
    write_file(folder / f"{NAME}.md", f"{text}\n".encode())
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    flags.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    flags.add_argument("--tilelang", type=Path)
    asked = flags.parse_args(arguments)
    problems = [SMALL] if asked.small else [Problem(tokens, torch.device("cuda")) for tokens in asked.tokens]
    beside = {name: partial(SECTIONS[name], examples=asked.tilelang) for name in ("latents", "index")}
    figures, machines = earlier(asked.folder / f"{NAME}.json", Figure)
    for name in (name for name in SECTIONS if name in asked.only):
        wanted = {problem.tokens for problem in problems}
        figures = [each for each in figures if each.section != name or each.tokens not in wanted]
        date = datetime.now(UTC).isoformat(timespec="seconds")
        machines[name] = replace(this_machine(), commit=asked.commit), date
        for problem in problems:
            torch.manual_seed(0)
            for figure in {**SECTIONS, **beside}[name](problem):
                figures.append(figure)
                print(figure, flush=True)
                write(figures, machines, asked.folder)
    print(write(figures, machines, asked.folder))
    return 0 if all(promise.kept for promise in promises(figures)) else 1


if __name__ == "__main__":
    sys.exit(main())
