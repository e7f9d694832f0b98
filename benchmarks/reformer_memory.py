"""Measures the memory and the time of training a Reformer by its depth, reversible and with activations stored.

    python benchmarks/reformer_memory.py [--folder FOLDER] [--commit COMMIT] [--small]

A step is forward, loss and backward of one sequence, in bf16 by autocast; layers of local attention and of hashed
attention take turns. Memory is what a step needs above weights and their gradients. Writes `reformer_memory.json` and
`reformer_memory.md`. `--commit` names the code where its copy has no history; `--small` is a rehearsal that any machine
can run.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from gossamer.atomic import write_file
from gossamer.bench.clock import clock_for
from gossamer.config import ReformerConfig
from gossamer.machine import Machine, this_machine
from gossamer.measure import peak_memory
from gossamer.models.reformer import Reformer

RESULTS = Path(__file__).parent / "results"
NAME = "reformer_memory"
DEPTHS = (2, 4, 8, 16, 24)
CONFIG = ReformerConfig(
    vocab_size=256,
    hidden_size=512,
    num_attention_heads=8,
    attention_head_size=64,
    feed_forward_size=2048,
    is_decoder=True,
    max_position_embeddings=65536,
    axial_pos_shape=(256, 256),
    axial_pos_embds_dim=(128, 384),
    local_attn_chunk_length=128,
    lsh_attn_chunk_length=128,
    num_hashes=2,
    hidden_dropout_prob=0.1,
    local_attention_probs_dropout_prob=0.0,
    chunk_size_feed_forward=16384,
)


@dataclass(frozen=True)
class Figure:
    """One depth, by one way."""

    layers: int
    stored: bool
    bytes: int
    seconds: float
    gradient_difference: float
    """Norm of the difference from the gradient of stored activations, relative to that gradient's norm."""


@dataclass(frozen=True)
class Task:
    """What is trained, and how often a step is timed."""

    config: ReformerConfig
    depths: tuple[int, ...]
    repeats: int
    device: torch.device


def small(task: Task) -> Task:
    """The same at a size that any machine can rehearse."""
    config = replace(
        task.config, hidden_size=32, num_attention_heads=2, attention_head_size=16, feed_forward_size=64,
        max_position_embeddings=512, axial_pos_shape=(16, 32), axial_pos_embds_dim=(8, 24),
        local_attn_chunk_length=32, lsh_attn_chunk_length=32, chunk_size_feed_forward=128,
    )  # fmt: skip
    return replace(task, config=config, depths=(2, 4), repeats=1, device=torch.device("cpu"))


def figures(task: Task, layers: int) -> list[Figure]:
    """Reversible and stored, of one model on one text with one seed."""
    torch.manual_seed(0)
    kinds = ("local", "lsh") * (layers // 2)
    model = Reformer(replace(task.config, attn_layers=kinds), head="lm").to(task.device)
    text = torch.randint(task.config.vocab_size, (1, task.config.longest + 1), device=task.device)

    def step() -> None:
        torch.manual_seed(1)  # the same hashes and the same dropout
        model.zero_grad(set_to_none=False)
        with torch.autocast(task.device.type, torch.bfloat16):
            loss = model(text[:, :-1], text[:, 1:]).loss
        loss.backward()

    ways, bytes_of, gradients, times = (True, False), {}, {}, {True: [], False: []}
    for stored in ways:
        model.blocks.stored = stored
        step()
        gradients[stored] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    apart = ((gradients[False] - gradients[True]).norm() / gradients[True].norm()).item()
    del gradients
    clock = clock_for(task.device)
    for stored in ways:
        model.blocks.stored = stored
        with peak_memory(task.device) as peak:
            step()
        bytes_of[stored] = peak.bytes
    for _ in range(task.repeats):  # in turns, so that a machine that slows down slows both
        for stored in ways:
            model.blocks.stored = stored
            times[stored].append(clock(step))
    return [Figure(layers, way, bytes_of[way], min(times[way]), 0.0 if way else apart) for way in ways]


def page(task: Task, found: Sequence[Figure], machine: Machine, date: str) -> str:
    """The figures as Markdown."""
    config = task.config
    lines = [
        "# Depth and memory of a Reformer",
        "",
        f"One sequence of {config.longest:,} tokens, two streams of {config.hidden_size}, {config.num_attention_heads} "
        f"heads × {config.attention_head_size}, feed-forward {config.feed_forward_size:,} on "
        f"{config.chunk_size_feed_forward:,} positions at a time, chunks of {config.local_attn_chunk_length}, "
        f"{config.num_hashes} rounds of hashing; forward, loss and backward in bf16 by autocast.",
        f"{machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, Gossamer {machine.gossamer}, "
        f"commit {machine.commit or 'not known'}, {date}. Made by `benchmarks/{NAME}.py`.",
        f"Memory above weights and gradients. Milliseconds: fastest of {task.repeats} steps, in turns. Gradients: how "
        "far those of reversible layers are from those of stored activations, relative to their norm.",
        "",
        "| layers | stored, GiB | reversible, GiB | stored, ms | reversible, ms | × time | gradients |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for stored, reversible in zip(found[::2], found[1::2], strict=True):
        lines.append(
            f"| {stored.layers} | {stored.bytes / 2**30:.2f} | {reversible.bytes / 2**30:.2f} | "
            f"{1e3 * stored.seconds:.1f} | {1e3 * reversible.seconds:.1f} | "
            f"{reversible.seconds / stored.seconds:.2f} | {reversible.gradient_difference:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = Task(CONFIG, DEPTHS, repeats=7, device=device)
    task = small(task) if asked.small else task
    machine, date = replace(this_machine(), commit=asked.commit), datetime.now(UTC).isoformat(timespec="seconds")
    found: list[Figure] = []
    asked.folder.mkdir(parents=True, exist_ok=True)
    for layers in task.depths:
        found += figures(task, layers)
        record = {"machine": asdict(machine), "date": date, "config": task.config.to_dict()}
        record["figures"] = [asdict(figure) for figure in found]
        write_file(asked.folder / f"{NAME}.json", f"{json.dumps(record, indent=1)}\n".encode())
        write_file(asked.folder / f"{NAME}.md", page(task, found, machine, date).encode())
    print(page(task, found, machine, date))
    return 0


if __name__ == "__main__":
    sys.exit(main())
