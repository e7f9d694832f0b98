"""Trains classifiers of ListOps that differ in their attention alone, and writes how often each is right.

    python benchmarks/listops.py [--seconds 240] [--only dense longformer bigbird reformer] [--examples 60000]
                                 [--shortest 501] [--longest 1999] [--keys 512] [--layers 4] [--width 256] ...
                                 [--folder FOLDER] [--commit COMMIT]

Texts are drawn from `--seed`: operators MIN, MAX, MED and SM, 10 levels, 2 to 10 arguments, brackets kept. Everyone has
the same model, the same texts in the same order and the same seconds, `--seconds` in all with drawing and testing.
Writes `listops.json` and `.md` after each one.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
TESTING = 2.0
"""Seconds of a turn that the test takes, at most."""


@dataclass(frozen=True)
class Learning:
    """How everyone learns."""

    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    tokens: int = 65536
    """Of a batch."""
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """What one attention has learned."""

    attention: str
    accuracy: float
    """Share of the test's values that are right."""
    loss: float
    """Mean over the last tenth of the steps, in nats."""
    steps: int
    examples: int
    seconds: float
    """Of training alone; compiling kernels and testing come on top."""
    peak_bytes: int
    fault: str | None = None


def begun(kind: str, size: Size, learning: Learning, data: Examples) -> Classifier:
    """A new classifier whose kernels are compiled: one text of each width has passed through it."""
    torch.manual_seed(learning.seed)
    width = data.tokens.shape[1]
    model = Classifier(kind, size, vocabulary=len(SYMBOLS), longest=width, classes=10).to(data.tokens.device)
    widths = set()
    for batch in data.batches(learning.tokens):
        if batch.tokens.shape[1] not in widths:
            widths.add(batch.tokens.shape[1])
            loss_of(model, Batch(*(part[:2] for part in batch))).backward()
    model.zero_grad()
    return model


def train(model: Classifier, learning: Learning, data: Examples, budget: Budget) -> Score:
    """Trains the classifier for as many steps as the budget allows, at least one; the score lacks the test."""
    device = data.tokens.device
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=learning.weight_decay, betas=(0.9, 0.98), fused=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses, seen, began, clock = [], 0, time.perf_counter(), budget.rest()
    for step, batch in enumerate(epochs(data, learning), 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, clock.share, highest=learning.learning_rate, warmup_steps=learning.warmup_steps)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        seen += len(batch.values)
        if step % 20 == 0:  # waits, so that the clock tells the time of work that is done
            recent = torch.stack(losses[-100:]).mean().item()
            if step % 100 == 0:
                print(f"{model.kind}: step {step}, {time.perf_counter() - began:.0f} s, loss {recent:.3f}", flush=True)
        if not clock.left:
            break
    last = torch.stack(losses[-max(1, len(losses) // 10) :]).mean().item()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Score(model.kind, 0.0, last, len(losses), seen, time.perf_counter() - began, peak)


def epochs(data: Examples, learning: Learning) -> Iterator[Batch]:
    """Batches without end, each epoch in an order of its own."""
    for epoch in count():
        yield from data.batches(learning.tokens, seed=learning.seed + epoch)


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
        f"query where attention is sparse. AdamW at {learning['learning_rate']:g}, {learning['tokens']:,} tokens a "
        f"batch, the same order and the same seconds for everyone. The commonest value makes up "
        f"{100 * record['commonest']:.1f} % of the test."
    )
    yield from (machine_line, "")
    yield "| attention | right, % | training loss | steps | texts seen | texts/s | seconds | peak GiB |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for score in record["scores"]:
        if score["fault"]:
            yield f"| {score['attention']} | failed: {score['fault']} | | | | | | |"
            continue
        pace = score["examples"] / max(score["seconds"], 1e-9)
        yield (
            f"| {score['attention']} | {100 * score['accuracy']:.1f} | {score['loss']:.3f} | {score['steps']:,} | "
            f"{score['examples']:,} | {pace:,.0f} | {score['seconds']:.1f} | {score['peak_bytes'] / 2**30:.2f} |"
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
    machine, date, scores = machine_of(asked.commit), now(), []
    commonest = torch.bincount(test.values).max().item() / asked.test
    models: dict[str, Classifier | Exception] = {}
    for kind in asked.only:
        models[kind] = tried(lambda kind=kind: begun(kind, size, learning, training))
        print(f"{kind} is compiled after {asked.seconds - budget.left:.0f} s", flush=True)
    turns = sum(isinstance(model, Classifier) for model in models.values())
    for kind, model in models.items():
        score = model
        if isinstance(model, Classifier):
            turn, turns = Budget(max(0.0, budget.left / turns - TESTING)), turns - 1
            score = tried(lambda model=model, turn=turn: train(model, learning, training, turn))
        if isinstance(score, Score):
            scores.append(asdict(score) | {"accuracy": accuracy(model.eval(), test, learning.tokens)})
        else:
            scores.append(asdict(Score(kind, 0.0, 0.0, 0, 0, 0.0, 0, f"{type(score).__name__}: {score}"[:300])))
        record = {
            "machine": asdict(machine), "date": date, "shape": asdict(shape), "size": asdict(size),
            "learning": asdict(learning), "seconds": asked.seconds, "training": asked.examples, "test": asked.test,
            "commonest": commonest, "scores": scores,
        }  # fmt: skip
        text = write(asked.folder, NAME, record, list(page(record, where(machine, date))))
    return text


def tried(made: Callable[[], Made]) -> Made | Exception:
    """What is made, or why it failed: one that fails must not take the others' results along."""
    try:
        return made()
    except Exception as error:
        return error


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
