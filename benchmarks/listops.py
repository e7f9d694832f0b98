"""Trains classifiers of ListOps that differ in their attention alone, and writes how often each is right.

    python benchmarks/listops.py [--seconds 240] [--only dense longformer bigbird reformer] [--examples 60000]
                                 [--shortest 501] [--longest 1999] [--keys 512] [--layers 4] [--width 128] ...
                                 [--folder FOLDER] [--commit COMMIT]

Texts are drawn from `--seed`: operators MIN, MAX, MED and SM, 10 levels, 2 to 10 arguments, brackets kept. Everyone has
the same model, the same texts in the same order and the same seconds, a turn at a time; `--seconds` in all, with
drawing, compiling and testing. Writes `listops.json` and `.md` after each quarter of
the time.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from tasks.batches import Batch, Examples
from tasks.budget import Budget, rate
from tasks.classifier import ATTENTIONS, Classifier, Size
from tasks.record import machine_of, now, where, write
from tasks.trees import SYMBOLS, Shape, examples
from torch import Tensor

Made = TypeVar("Made")
RESULTS = Path(__file__).parent / "results"
NAME = "listops"
TESTING = 6.0
"""Seconds that the tests of everyone take, at most."""
TURN = 1.0
"""Seconds that one learns before it is another's turn: whatever else the machine does, it does to everyone."""


@dataclass(frozen=True)
class Learning:
    """How everyone learns."""

    learning_rate: float = 5e-4
    warmup_steps: int = 200
    weight_decay: float = 0.05
    tokens: int = 32768
    """Of a batch."""
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """What one attention has learned."""

    attention: str
    accuracy: float = 0.0
    """Share of the test's values that are right."""
    loss: float = 0.0
    """Mean over the last tenth of the steps, in nats."""
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    """Of training alone; compiling kernels and testing come on top."""
    peak_bytes: int = 0
    """Beyond weights and the optimizer's state."""
    fault: str | None = None


class Learner:
    """A classifier, its optimizer, and how far it has come.

    It is ready when it is made: one text of each width has passed through it, so that its kernels are compiled.
    """

    def __init__(self, kind: str, size: Size, learning: Learning, data: Examples):
        torch.manual_seed(learning.seed)
        self.kind, self.learning, self.device = kind, learning, data.tokens.device
        width = data.tokens.shape[1]
        self.model = Classifier(kind, size, vocabulary=len(SYMBOLS), longest=width, classes=10).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), weight_decay=learning.weight_decay, betas=(0.9, 0.98), fused=True
        )
        self.batches = epochs(data, learning)
        self.losses: list[Tensor] = []
        self.examples, self.seconds, self.peak_bytes = 0, 0.0, 0
        for batch in {batch.tokens.shape[1]: batch for batch in data.batches(learning.tokens)}.values():
            loss_of(self.model, Batch(*(part[:2] for part in batch))).backward()
        self.model.zero_grad()

    def learn(self, seconds: float, budget: Budget) -> None:
        """Steps for so many seconds or as long as the budget lasts, one at least."""
        held, began = self._held(), time.perf_counter()
        self.model.train()
        while True:
            self._step(next(self.batches), budget.share)
            if len(self.losses) % 5 == 0:
                self.losses[-1].item()  # waits, so that the clock tells the time of work that is done
            if time.perf_counter() - began >= seconds or not budget.left:
                break
        self.losses[-1].item()
        self.seconds += time.perf_counter() - began
        self.peak_bytes = max(self.peak_bytes, self._peak() - held)

    def mean_loss(self, share: float) -> float:
        """Over the last so large a share of the steps."""
        return torch.stack(self.losses[-math.ceil(share * len(self.losses)) :]).mean().item()

    def _step(self, batch: Batch, share: float) -> None:
        learning, step = self.learning, len(self.losses) + 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step, share, highest=learning.learning_rate, warmup_steps=learning.warmup_steps)
        loss = loss_of(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.detach())
        self.examples += len(batch.values)

    def _held(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0


def epochs(data: Examples, learning: Learning) -> Iterator[Batch]:
    """Batches without end, each epoch in an order of its own."""
    for epoch in count():
        yield from data.batches(learning.tokens, seed=learning.seed + epoch)


def learn_in_turns(
    learners: dict[str, Learner], budget: Budget, faults: dict[str, str], report: Callable[[], object]
) -> None:
    """Everyone learns for the same seconds, a turn at a time and one at least, until the budget is gone.

    `report` is called after each quarter of it, and at the end.
    """
    quarters = 1
    while learners and (budget.left or not all(learner.losses for learner in learners.values())):
        kind, learner = min(learners.items(), key=lambda entry: entry[1].seconds)
        if note_fault(kind, faults, lambda learner=learner: learner.learn(TURN, budget)) is FAILED:
            del learners[kind]
        if budget.share >= quarters / 4 and budget.left:
            quarters += 1
            report()
    report()


FAILED = object()


def note_fault(kind: str, faults: dict[str, str], made: Callable[[], Made]) -> Made | object:
    """What is made, or `FAILED` and a note: one that fails must not take the others' results along."""
    try:
        return made()
    except Exception as error:
        faults[kind] = f"{type(error).__name__}: {error}"[:300]
        return FAILED


def loss_of(model: Classifier, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch, in bfloat16 where the device is a GPU."""
    return F.cross_entropy(logits_of(model, batch), batch.values)


def logits_of(model: Classifier, batch: Batch) -> Tensor:
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=batch.tokens.is_cuda):
        return model(batch.tokens, batch.lengths).float()


@torch.no_grad()
def accuracy(model: Classifier, data: Examples, tokens: int) -> float:
    """Share of the examples whose value has the largest logit."""
    right = [(logits_of(model, batch).argmax(-1) == batch.values).sum() for batch in data.batches(tokens)]
    return torch.stack(right).sum().item() / len(data.widths)


def page(record: dict, machine_line: str) -> Iterator[str]:
    """The scores as Markdown."""
    shape, size, learning = record["shape"], record["size"], record["learning"]
    yield from ("# ListOps", "", "Made by `benchmarks/listops.py`.", "")
    yield (
        f"Nested MIN, MAX, MED and SM of digits: {shape['depth']} levels, 2 to {shape['most_arguments']} arguments, "
        f"{shape['shortest']} to {shape['longest']} tokens with their brackets; {record['training']:,} texts to learn "
        f"from, {record['test']:,} others to be tested with. Pre-LN encoders, {size['layers']} layers, {size['heads']} "
        f"heads, width {size['width']} (inner {size['inner']}), learned positions, CLS; about {size['keys']} keys to a "
        f"query where attention is sparse. Weights by Glorot; AdamW at {learning['learning_rate']:g}, "
        f"{learning['tokens']:,} tokens a batch, the same order for everyone, and the same seconds, in turns of "
        f"{TURN:g}. The commonest value makes up {100 * record['commonest']:.1f} % of the test."
    )
    yield from (machine_line, "")
    yield "| attention | right, % | training loss | steps | texts seen | texts/s | seconds | peak GiB |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for score in record["scores"]:
        if score["fault"] and not score["steps"]:
            yield f"| {score['attention']} | failed: {score['fault']} | | | | | | |"
            continue
        pace = score["examples"] / max(score["seconds"], 1e-9)
        yield (
            f"| {score['attention']} | {100 * score['accuracy']:.1f} | {score['loss']:.3f} | {score['steps']:,} | "
            f"{score['examples']:,} | {pace:,.0f} | {score['seconds']:.1f} | {score['peak_bytes'] / 2**30:.2f} |"
        )
    yield from (
        "",
        *(f"- {s['attention']} broke off: {s['fault']}" for s in record["scores"] if s["fault"] and s["steps"]),
    )


def run(asked: argparse.Namespace) -> str:
    """Everyone in turn; returns the page."""
    budget, device = Budget(asked.seconds), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Shape(depth=asked.depth, shortest=asked.shortest, longest=asked.longest)
    size = Size(asked.width, asked.heads, asked.layers, 4 * asked.width, asked.keys)
    learning = Learning(asked.learning_rate, tokens=asked.tokens, seed=asked.seed)
    drawn = list(islice(examples(shape, asked.seed, processes=asked.processes), asked.test + asked.examples))
    print(f"{len(drawn):,} texts after {budget.seconds - budget.left:.0f} s", flush=True)
    test, training = (Examples.of(part, device) for part in (drawn[: asked.test], drawn[asked.test :]))
    machine, date = machine_of(asked.commit), now()
    commonest = torch.bincount(test.values).max().item() / asked.test
    learners: dict[str, Learner] = {}
    faults: dict[str, str] = {}
    for kind in asked.only:
        made = note_fault(kind, faults, lambda kind=kind: Learner(kind, size, learning, training))
        if isinstance(made, Learner):
            learners[kind] = made
        print(f"{kind} is compiled after {asked.seconds - budget.left:.0f} s", flush=True)
    scores: dict[str, Score] = {}

    def report() -> str:
        for kind, learner in learners.items():
            made = note_fault(kind, faults, lambda learner=learner: score_of(learner, test)) if learner.losses else None
            scores[kind] = made if isinstance(made, Score) else scores.get(kind, Score(kind))
        told = [replace(scores.get(kind, Score(kind)), fault=faults.get(kind)) for kind in asked.only]
        record = {
            "machine": asdict(machine), "date": date, "shape": asdict(shape), "size": asdict(size),
            "learning": asdict(learning), "seconds": asked.seconds, "training": asked.examples, "test": asked.test,
            "commonest": commonest, "scores": [asdict(score) for score in told],
        }  # fmt: skip
        lines = ", ".join(f"{s.attention} {s.steps} steps, loss {s.loss:.3f}, {100 * s.accuracy:.1f} %" for s in told)
        print(f"after {asked.seconds - budget.left:.0f} s: {lines}", flush=True)
        return write(asked.folder, NAME, record, list(page(record, where(machine, date))))

    learn_in_turns(learners, Budget(max(0.1, budget.left - TESTING)), faults, report)
    return (asked.folder / f"{NAME}.md").read_text(encoding="utf-8")


def score_of(learner: Learner, test: Examples) -> Score:
    """How far it has come, and its test."""
    right = accuracy(learner.model.eval(), test, learner.learning.tokens)
    told = learner.seconds, learner.peak_bytes
    return Score(learner.kind, right, learner.mean_loss(0.1), len(learner.losses), learner.examples, *told)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seconds", type=float, default=240.0)
    flags.add_argument("--only", nargs="+", choices=ATTENTIONS, default=list(ATTENTIONS))
    for name, default in {
        "examples": 60000,
        "test": 2000,
        "processes": 8,
        "seed": 0,
        "tokens": Learning.tokens,
    }.items():
        flags.add_argument(f"--{name}", type=int, default=default)
    for name in ("depth", "shortest", "longest"):
        flags.add_argument(f"--{name}", type=int, default=getattr(Shape, name))
    for name in ("width", "heads", "layers", "keys"):
        flags.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    flags.add_argument("--learning-rate", type=float, default=Learning.learning_rate)
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit")
    print(run(flags.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
