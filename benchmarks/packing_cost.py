"""Measures what packed documents cost a training step: planned anew each time, planned before, not packed, and alone.

    python benchmarks/packing_cost.py [--folder FOLDER] [--commit COMMIT] [--small]

A step is forward, loss and backward of a GPT-2 with the design document's attention, in bf16 by autocast, by the wall
clock from an idle machine to an idle machine, so that planning counts. Writes `packing_cost.json` and
`packing_cost.md`. `--commit` names the code where its copy has no history; `--small` is a rehearsal for any machine.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import torch

from gossamer import GPT2, GPT2Config
from gossamer.atomic import write_file
from gossamer.bench.clock import wall_seconds
from gossamer.machine import this_machine
from gossamer.nn import Packing
from gossamer.patterns import Packed
from gossamer.plan import plan

RESULTS = Path(__file__).parent / "results"
NAME = "packing_cost"
REPEATS, WARM_UP = 15, 3
CONFIG = GPT2Config(
    vocab_size=50304, context_size=8192, n_layer=12, n_head=12, n_embed=768, dropout=0.0, use_sparse_attention=True
)
SMALL = replace(CONFIG, vocab_size=257, context_size=128, n_layer=1, n_embed=96)
ROWS, DOCUMENTS = 2, 16


def drawn(tokens: int, documents: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Lengths of documents that are cut at random."""
    cuts = np.sort(generator.choice(np.arange(1, tokens), documents - 1, replace=False))
    return tuple(np.diff(cuts, prepend=0, append=tokens).tolist())


def measured(config: GPT2Config, device: torch.device) -> dict[str, float]:
    """Median seconds of a step by each way, in turns, and of planning alone."""
    torch.manual_seed(0)
    model, generator = GPT2(config).to(device), np.random.default_rng(0)
    context = config.context_size
    tokens = torch.randint(config.vocab_size, (ROWS, context + 1), device=device)
    row, wanted = (part.reshape(1, -1) for part in (tokens[:, :-1], tokens[:, 1:]))

    def lengths() -> tuple[int, ...]:
        return sum((drawn(context, DOCUMENTS, generator) for _ in range(ROWS)), ())

    def step(*parts: tuple[torch.Tensor, torch.Tensor, Packing | None]) -> None:
        model.zero_grad()
        for some, following, packing in parts:
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(some, following, cache=packing, planned_length=context).loss
            loss.backward()

    same = lengths()
    alone = [(*pair, None) for pair in zip(row.split(same, 1), wanted.split(same, 1), strict=True)]
    ways: dict[str, Callable[[], None]] = {
        "not packed": lambda: step((tokens[:, :-1], tokens[:, 1:], None)),
        "packed, the same documents": lambda: step((row, wanted, Packing(same, capacity=context))),
        "packed, other documents in each step": lambda: step((row, wanted, Packing(lengths(), capacity=context))),
        "each document alone": lambda: step(*alone),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(WARM_UP + REPEATS):
        for way, run in ways.items():
            taken = wall_seconds(run, device)
            seconds[way] += [taken] if turn >= WARM_UP else []
    pattern = model.h[0].attn.pattern(context)
    new = [Packed(pattern, drawn(context, DOCUMENTS, generator)) for _ in range(REPEATS)]
    host = torch.device("cpu")
    seconds["planning alone"] = [wall_seconds(lambda p=p: plan(p, context, context, config.n_head), host) for p in new]
    return {way: median(times) for way, times in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    config = SMALL if asked.small else CONFIG
    found = measured(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    machine, date = replace(this_machine(), commit=asked.commit), datetime.now(UTC).isoformat(timespec="seconds")
    page = [
        "# What packed documents cost",
        "",
        f"A step of a GPT-2 with {config.n_layer} layers, {config.n_head} heads and a width of {config.n_embed}, on "
        f"{ROWS} sequences of {config.context_size:,} tokens with {DOCUMENTS} documents in each; planning is of one.",
        f"{machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, Gossamer {machine.gossamer}, "
        f"commit {machine.commit or 'not known'}, {date}. Made by `benchmarks/{NAME}.py`.",
        f"Median of {REPEATS}, in turns.",
        "",
        "| way | ms |",
        "|---|--:|",
        *(f"| {way} | {1e3 * seconds:.2f} |" for way, seconds in found.items()),
    ]
    record = {"machine": asdict(machine), "date": date, "config": config.to_dict(), "seconds": found}
    asked.folder.mkdir(parents=True, exist_ok=True)
    write_file(asked.folder / f"{NAME}.json", f"{json.dumps(record, indent=1)}\n".encode())
    write_file(asked.folder / f"{NAME}.md", ("\n".join(page) + "\n").encode())
    print("\n".join(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
