"""Measures links, context-parallel attention and training over several GPUs, and says whether promises hold.

    for n in 1 2 4; do torchrun --nproc-per-node $n benchmarks/h200_parallel.py; done
        [--only links context training switches] [--cases NAME] [--folder FOLDER] [--traces FOLDER]
        [--commit COMMIT] [--small]

Each call measures with its number of processes, a GPU each, and keeps what FOLDER holds of others; efficiencies of
training need calls with one and with more. `--traces` keeps the timelines; `--commit` names the code where its copy has
no history; `--small` is a rehearsal that any machine can run. Writes `h200_parallel.json` and `.md` after each section.
Exits with 1 if a promise is broken.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from record import Machines, earlier, leave
from scale.context import context_figures
from scale.figures import Figure
from scale.links import link_figures
from scale.page import page, promises
from scale.simulation import predictions
from scale.training import switch_figures, training_figures

from gossamer.atomic import write_file
from gossamer.machine import this_machine

RESULTS = Path(__file__).parent / "results"
NAME = "h200_parallel"
SECTIONS = {
    "links": link_figures,
    "context": context_figures,
    "training": training_figures,
    "switches": switch_figures,
}


def key(figure: Figure) -> tuple[str, int, str, int]:
    """What a later figure of the same takes the place of."""
    return figure.section, figure.processes, figure.case, figure.tokens


def write(figures: Sequence[Figure], machines: Machines, folder: Path) -> str:
    """Leaves what is known so far in the folder; returns the page."""
    text = page(figures, machines)
    leave(
        folder / f"{NAME}.json",
        figures,
        machines,
        {"promises": [*promises(figures)], "simulated, not measured": [*predictions(figures)]},
    )
    write_file(folder / f"{NAME}.md", f"{text}\n".encode())
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    flags.add_argument("--cases", nargs="+", default=[""], help="switches whose names hold one of these alone")
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--traces", type=Path)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    on_gpus = torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", dist.get_node_local_rank()) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    figures, machines = earlier(asked.folder / f"{NAME}.json", Figure)
    sections = SECTIONS | {
        "context": partial(context_figures, traces=asked.traces),
        "switches": partial(switch_figures, cases=asked.cases),
    }
    for name in (name for name in SECTIONS if name in asked.only):
        date = datetime.now(UTC).isoformat(timespec="seconds")
        machines[f"{name} {count}"] = replace(this_machine(), commit=asked.commit), date
        for found in sections[name](device, small=asked.small):
            figure = replace(found, commit=asked.commit)
            figures = [each for each in figures if key(each) != key(figure)] + [figure]
            if rank == 0:
                print(figure, flush=True)
                write(figures, machines, asked.folder)
    if rank == 0:
        print(write(figures, machines, asked.folder))
    dist.destroy_process_group()
    return 0 if all(promise.kept for promise in promises(figures)) else 1


if __name__ == "__main__":
    sys.exit(main())
