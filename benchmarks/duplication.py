"""Trains a Reformer of one layer to repeat a word, and writes how much of it is right under other rounds of hashing.

    python benchmarks/duplication.py [--seconds 240] [--trained 4 2 1 full] [--word 511] [--symbols 127] [--batch 64]
                                     [--chunk 64] [--learning-rate 2e-3] [--precision fp32] [--width 256]
                                     [--seed 0] [--folder FOLDER] [--commit COMMIT]

The task of the Reformer's paper: 0w0w with random w, the loss on the second w. `--trained` names the rounds of
hashing to train with, or `full`; each gets the same share of `--seconds`, and is then evaluated with 8, 4, 2 and 1
rounds and with full attention. Writes `duplication.json` and `.md` after each one.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tasks.budget import Budget, rate
from tasks.copies import Rounds, accuracy, copies, loss_of, shape, with_rounds
from tasks.record import machine_of, now, where, write

from gossamer.models.reformer import Reformer

RESULTS = Path(__file__).parent / "results"
NAME = "duplication"
EVALUATED: tuple[Rounds, ...] = ("full", 8, 4, 2, 1)
PAPER = {
    "full": (100.0, 94.8, 92.5, 76.9, 52.5),
    4: (0.8, 100.0, 99.9, 99.4, 91.9),
    2: (0.8, 100.0, 99.9, 98.1, 86.8),
    1: (0.8, 99.9, 99.6, 94.8, 77.9),
}
"""Table 2: trained with, and evaluated with each of `EVALUATED`, in per cent after 150,000 steps."""
EVALUATING = 0.05
"""Share of a turn that evaluating takes, at most."""


@dataclass(frozen=True)
class Task:
    """What is repeated, by whom, and how it is learned."""

    word: int
    symbols: int
    width: int
    heads: int
    chunk: int
    batch: int
    learning_rate: float
    warmup_steps: int
    precision: str
    seed: int

    @property
    def half(self) -> bool:
        """Whether the forward is in bfloat16."""
        return self.precision == "bf16"


@dataclass(frozen=True)
class Row:
    """What was learned with so many rounds, and how much of the word is right with others."""

    trained: Rounds
    steps: int
    seconds: float
    loss: float
    """Mean over the last tenth of the steps, in nats."""
    learned: int | None
    """The first step, of those looked at, whose loss is below a tenth of a guess's."""
    right: dict[str, float]
    curve: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps before it)."""


def begun(task: Task, rounds: Rounds, device: torch.device) -> Reformer:
    """A new model, whose kernels, and those that evaluate it, are compiled."""
    torch.manual_seed(task.seed)
    config = shape(task.word, task.symbols, width=task.width, heads=task.heads, chunk=task.chunk, rounds=rounds)
    model = Reformer(config, head="lm").to(device)
    model.blocks.stored = True  # one layer: nothing is gained by computing it again
    few = copies(2, task.word, task.symbols, torch.Generator(device).manual_seed(task.seed))
    loss_of(model, few, half=task.half).backward()
    model.zero_grad()
    for other in EVALUATED:
        accuracy(with_rounds(model, other, task.word, task.symbols, chunk=task.chunk), few, half=task.half)
    return model


def train(task: Task, model: Reformer, rounds: Rounds, budget: Budget) -> Row:
    """Trains the model for as many steps as the budget allows, at least one; the row lacks the evaluation."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    draws = torch.Generator(model.head.decoder.weight.device).manual_seed(task.seed)
    clock, began, step, losses, curve = budget.rest(), time.perf_counter(), 0, [], []
    while clock.left or not step:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = rate(step, clock.share, highest=task.learning_rate, warmup_steps=task.warmup_steps)
        loss = loss_of(model, copies(task.batch, task.word, task.symbols, draws), half=task.half)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % 50 == 0:  # waits, so that the clock tells the time of work that is done
            curve.append((step, torch.stack(losses[-50:]).mean().item()))
            if step % 200 == 0:
                seconds = time.perf_counter() - began
                print(f"trained with {rounds}: step {step}, {seconds:.0f} s, loss {curve[-1][1]:.4f}", flush=True)
    last = torch.stack(losses[-max(1, step // 10) :]).mean().item()
    guess = math.log(task.symbols)
    learned = next((at for at, value in curve if value < guess / 10), None)
    return Row(rounds, step, time.perf_counter() - began, last, learned, {}, tuple(curve))


def evaluate(task: Task, model: Reformer, *, words: int) -> Iterator[dict[str, float]]:
    """Share of the second word that is right, for one after another of `EVALUATED`, on words that training lacks."""
    device, right = model.head.decoder.weight.device, {}
    test = copies(words, task.word, task.symbols, torch.Generator(device).manual_seed(task.seed + 2**40))
    torch.manual_seed(task.seed)  # the hashes'
    for rounds in EVALUATED:
        other = with_rounds(model, rounds, task.word, task.symbols, chunk=task.chunk)
        right[str(rounds)] = accuracy(other, test, half=task.half)
        yield dict(right)


def page(record: dict, machine_line: str) -> Iterator[str]:
    """The rows as Markdown, the paper's beside them."""
    task = record["task"]
    length = 2 * (task["word"] + 1)
    yield from ("# Duplication", "", "Made by `benchmarks/duplication.py`.", "")
    yield (
        f"0w0w with a random w of {task['word']} of {task['symbols']} symbols, {length:,} tokens; the share of the "
        f"second w that is right, in per cent, over {record['words']} words. A Reformer of one layer: width and inner "
        f"width {task['width']}, {task['heads']} heads, learned positions, {2 * length // task['chunk']} buckets in a "
        f"round, chunks of {task['chunk']}, only one's own bucket seen and nobody twice. AdamW at "
        f"{task['learning_rate']:g}, {task['batch']} words a step, {task['precision']}, no curriculum. The paper "
        "trained 150,000 steps, with words of 511 of 127 symbols."
    )
    yield from (machine_line, "")
    yield "| trained with | steps | seconds | learned at step | full | LSH-8 | LSH-4 | LSH-2 | LSH-1 |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in record["rows"]:
        shares = (row["right"].get(str(rounds)) for rounds in EVALUATED)
        right = " | ".join("–" if share is None else f"{100 * share:.1f}" for share in shares)
        learned = row["learned"] or "–"
        yield f"| {_name(row['trained'])} | {row['steps']:,} | {row['seconds']:.0f} | {learned} | {right} |"
        if row["trained"] in PAPER:
            right = " | ".join(f"{share:.1f}" for share in PAPER[row["trained"]])
            yield f"| {_name(row['trained'])}, the paper | 150,000 | – | – | {right} |"


def _name(rounds: Rounds) -> str:
    return "full attention" if rounds == "full" else f"LSH-{rounds}"


def run(asked: argparse.Namespace) -> str:
    """Every row in turn; returns the page."""
    budget, device = Budget(asked.seconds), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = (
        "word",
        "symbols",
        "width",
        "heads",
        "chunk",
        "batch",
        "learning_rate",
        "warmup_steps",
        "precision",
        "seed",
    )
    task = Task(**{name: getattr(asked, name) for name in names})
    machine, date, rows = machine_of(asked.commit), now(), []
    models = {rounds: begun(task, rounds, device) for rounds in asked.trained}
    compiling = asked.seconds - budget.left
    print(f"kernels are compiled after {compiling:.0f} s", flush=True)

    def told(right: dict[str, float]) -> str:
        record = {
            "machine": asdict(machine), "date": date, "task": asdict(task), "seconds": asked.seconds,
            "words": asked.words, "rows": [*rows, asdict(row) | {"right": right}],
        }  # fmt: skip
        return write(asked.folder, NAME, record, list(page(record, where(machine, date))))

    for place, (rounds, model) in enumerate(models.items()):
        turn = Budget(budget.left / (len(models) - place) * (1 - EVALUATING))
        row = train(task, model, rounds, turn)
        text, right = told({}), {}
        for right in evaluate(task, model, words=asked.words):
            text = told(right)
        rows.append(asdict(row) | {"right": right})
    return text


def _rounds(text: str) -> Rounds:
    return "full" if text == "full" else int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seconds", type=float, default=240.0)
    flags.add_argument("--trained", nargs="+", type=_rounds, default=[4, 2, 1, "full"])
    sizes = {"word": 511, "symbols": 127, "width": 256, "heads": 4, "chunk": 64, "batch": 64, "words": 512}
    for name, default in {**sizes, "warmup-steps": 200, "seed": 0}.items():
        flags.add_argument(f"--{name}", type=int, default=default)
    flags.add_argument("--learning-rate", type=float, default=2e-3)
    flags.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit")
    print(run(flags.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
