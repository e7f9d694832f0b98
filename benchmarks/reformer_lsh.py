"""Measures hashed attention beside transformers' layer of the same settings, weights and number of buckets.

    python benchmarks/reformer_lsh.py [--folder FOLDER] [--commit COMMIT] [--small]

Forward and backward of one layer over 65,536 tokens in all, cut into sequences of several lengths, with its own hash
drawn at each call. Nothing is timed before the layer gives what transformers' layer gives with the same buckets. Writes
`reformer_lsh.json` and `reformer_lsh.md`. `--commit` names the code where its copy has no history; `--small` is a
rehearsal that any machine can run. Exits with 1 if a promise is broken.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from gossamer.atomic import write_file
from gossamer.bench.clock import clock_for
from gossamer.machine import Machine, this_machine
from gossamer.measure import peak_memory
from gossamer.nn import LSHAttention
from gossamer.selectors import LSH

RESULTS = Path(__file__).parent / "results"
NAME = "reformer_lsh"
HEADS, HEAD_WIDTH = 12, 64
TIMES, GROWTH = 4.0, 1.25
"""What is promised of half precision: so many times faster, and no length so much slower per token than the first."""


@dataclass(frozen=True)
class Task:
    """What is measured."""

    length: int
    rounds: int
    dtype: torch.dtype
    tokens: int = 65536
    heads: int = HEADS
    chunk: int = 64
    repeats: int = 5
    device: str = "cuda"

    @property
    def width(self) -> int:
        return self.heads * HEAD_WIDTH

    @property
    def lsh(self) -> LSH:
        return LSH.trax(self.rounds, self.chunk)


TASKS = (
    *(Task(length, 2, torch.bfloat16) for length in (4096, 8192, 16384, 32768, 65536)),
    *(Task(65536, rounds, torch.bfloat16) for rounds in (1, 4)),
    *(Task(length, 2, torch.float32) for length in (4096, 65536)),
)


@dataclass(frozen=True)
class Figure:
    """One task: milliseconds and GiB, theirs and ours."""

    length: int
    rounds: int
    dtype: str
    theirs_forward: float
    ours_forward: float
    theirs: float
    ours: float
    theirs_memory: float
    ours_memory: float
    difference: float
    """The median token's difference of outputs with the same buckets, relative to their norm."""

    @property
    def times(self) -> float:
        return self.theirs / self.ours


def layers(task: Task) -> tuple[LSHSelfAttention, LSHAttention]:
    """Theirs and ours with the same weights; ours projects back too, here by the identity."""
    counts = task.lsh.bucket_counts(task.length)
    config = ReformerConfig(
        hidden_size=task.width, num_attention_heads=task.heads, attention_head_size=HEAD_WIDTH, attn_layers=["lsh"],
        lsh_attn_chunk_length=task.chunk, num_hashes=task.rounds, is_decoder=True,
        num_buckets=list(counts) if len(counts) > 1 else counts[0], lsh_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs, ours = LSHSelfAttention(config, 0), LSHAttention(task.width, task.heads, task.lsh)
    ours.query_key.load_state_dict(theirs.query_key.state_dict())
    ours.value.load_state_dict(theirs.value.state_dict())
    nn.init.eye_(ours.dense.weight)
    return theirs.to(task.device, task.dtype), ours.to(task.device, task.dtype)


def measured(task: Task) -> Figure:
    """Both layers in turns, behind the check that they agree."""
    theirs, ours = layers(task)
    shape = task.tokens // task.length, task.length, task.width
    x = torch.randn(shape, device=task.device, dtype=task.dtype, requires_grad=True)
    with torch.no_grad():
        right = theirs(x)
        found = ours(x, buckets=right.buckets)
        difference = median_difference(found.float(), right.hidden_states.float())
    del right, found
    if difference > 2 * torch.finfo(torch.bfloat16).eps:  # theirs sums in its dtype
        raise AssertionError(f"{task}: outputs differ by {difference:.1e}")

    def of_theirs() -> Tensor:
        return theirs(x).hidden_states

    def of_ours() -> Tensor:
        return ours(x)

    seconds, memory = {}, {}
    device = torch.device(task.device)
    clock = clock_for(device)
    for who, forward in (("theirs", of_theirs), ("ours", of_ours)):
        step = trained(forward, x)
        step()
        with peak_memory(device) as peak:
            step()
        memory[who] = peak.bytes / 2**30
        with torch.no_grad():
            forward()
            seconds[f"{who}_forward"] = 1e3 * statistics.median(clock(forward) for _ in range(task.repeats))
        seconds[who] = 1e3 * statistics.median(clock(step) for _ in range(task.repeats))
    return Figure(
        task.length, task.rounds, str(task.dtype).removeprefix("torch."), **seconds,
        theirs_memory=memory["theirs"], ours_memory=memory["ours"], difference=difference,
    )  # fmt: skip


def median_difference(found: Tensor, right: Tensor) -> float:
    """The median token's, relative to its norm: theirs is off where a token sees only itself in several rounds."""
    return ((found - right).norm(dim=-1) / right.norm(dim=-1)).median().item()


def trained(forward: Callable[[], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward, down to the gradient of the input and of the weights."""
    grad = torch.randn_like(x)

    def step() -> None:
        x.grad = None
        forward().backward(grad)

    return step


def broken(found: Sequence[Figure]) -> Iterator[str]:
    """What of the promises does not hold."""
    for figure in found:
        if figure.times < TIMES and figure.dtype != "float32":  # whose products have no tensor cores, theirs and ours
            yield f"{figure.dtype}, {figure.rounds} rounds, {figure.length:,} tokens: {figure.times:.1f} times"
    same = [figure for figure in found if (figure.rounds, figure.dtype) == (found[0].rounds, found[0].dtype)]
    for figure in same:
        if figure.ours > GROWTH * same[0].ours:
            yield f"{figure.length:,} tokens take {figure.ours / same[0].ours:.2f} times as long as {same[0].length:,}"


def page(found: Sequence[Figure], machine: Machine, date: str) -> str:
    """The figures as Markdown."""
    first = TASKS[0]
    lines = [
        "# Hashed attention beside transformers'",
        "",
        f"One layer, {first.heads} heads × {HEAD_WIDTH}, chunks of {first.chunk}, causal, trax's convention, two "
        f"buckets for each chunk; {first.tokens:,} tokens in all. Theirs is transformers' LSHSelfAttention.",
        f"{machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, Gossamer {machine.gossamer}, "
        f"commit {machine.commit or 'not known'}, {date}. Made by `benchmarks/{NAME}.py`.",
        f"Medians of {first.repeats} calls. Memory is the peak of a training step above what was there before. "
        "Difference: the median token's, of outputs with the same buckets, relative to their norm.",
        "",
        "| dtype | rounds | length | theirs, forward, ms | ours | theirs, forward + backward, ms | ours | times faster "
        "| theirs, GiB | ours | difference |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {x.dtype} | {x.rounds} | {x.length:,} | {x.theirs_forward:.2f} | {x.ours_forward:.2f} | {x.theirs:.2f} | "
        f"{x.ours:.2f} | {x.times:.1f} | {x.theirs_memory:.2f} | {x.ours_memory:.2f} | {x.difference:.1e} |"
        for x in found
    ]
    return "\n".join(lines) + "\n"


def small(task: Task) -> Task:
    """The same at a size that any machine can rehearse."""
    shape = {"length": task.length // 64, "tokens": task.tokens // 64, "heads": 2, "chunk": 8}
    return replace(task, **shape, repeats=1, device="cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit", default=this_machine().commit)
    flags.add_argument("--small", action="store_true")
    asked = flags.parse_args(arguments)
    machine, date = replace(this_machine(), commit=asked.commit), datetime.now(UTC).isoformat(timespec="seconds")
    asked.folder.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    for task in TASKS:
        torch.manual_seed(0)
        found.append(measured(small(task) if asked.small else task))
        record = {"machine": asdict(machine), "date": date, "figures": [asdict(figure) for figure in found]}
        write_file(asked.folder / f"{NAME}.json", f"{json.dumps(record, indent=1)}\n".encode())
        write_file(asked.folder / f"{NAME}.md", page(found, machine, date).encode())
    print(page(found, machine, date))
    faults = [] if asked.small else list(broken(found))
    print("\n".join(faults) or "Every promise is kept.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
