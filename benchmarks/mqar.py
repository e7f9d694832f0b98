"""Trains models that differ in their attention alone to recall pairs of tokens, and writes how often each is right.

    python benchmarks/mqar.py [--seconds 30] [--only dense window lsh ...] [--keys 64] [--width 256] [--heads 2]
                              [--trained 64:4 128:8 256:16 256:32 256:64] [--tested 64:4 ... 1024:256] [--zeros]
                              [--vocabulary 8192] [--tokens 32768] [--learning-rate 3e-3] [--folder FOLDER] ...

Multi-query associative recall (Zoology, arXiv 2312.04927). `--trained` and `--tested` are texts as length:pairs;
no text is seen twice. Each attention has `--seconds` of training, less where all that is trained is learned before, and
everyone the same texts in the same order. What is neither pair nor question is any token at all, or 0 with `--zeros`.
Compiling kernels and testing come on top. Writes `mqar.json`, `.md` and `.png` after each one.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tasks.budget import Budget, rate
from tasks.mixers import BLOCK, MIXERS, PAIR, ROUNDS, Sight
from tasks.recall import Recall
from tasks.recall_chart import save_chart
from tasks.recaller import Recaller, accuracy, losses
from tasks.record import machine_of, now, where, write

from gossamer.training.stages import indexer_parameters

RESULTS = Path(__file__).parent / "results"
NAME = "mqar"
TRAINED = ((64, 4), (128, 8), (256, 16), (256, 32), (256, 64))
TESTED = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
"""Length and pairs of the texts, as in the paper's repository."""
CHECKED = 100
"""Steps between two looks at how much is right."""
LEARNED = 0.99
"""With so much of each right that is trained, training ends."""


@dataclass(frozen=True)
class Learning:
    """How everyone learns."""

    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    tokens: int = 32768
    """Of a batch."""
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """What one attention has learned."""

    mixer: str
    right: Sequence[float] = ()
    """Share of the values that are found, for each of the tested texts."""
    steps: int = 0
    seconds: float = 0.0
    """Of training alone."""
    loss: float = 0.0
    """Mean over the last tenth of the steps, in nats."""
    curve: Sequence[tuple[float, float]] = ()
    """(seconds, share found of the hardest texts that are trained)."""
    fault: str | None = None

    def seconds_to(self, right: float) -> float | None:
        """When so large a share was found for the first time that was looked."""
        return next((seconds for seconds, share in self.curve if share >= right), None)


class Learner:
    """A model, its optimizer, and how far it has come. Its kernels are compiled when it is made."""

    def __init__(self, mixer: str, sight: Sight, trained: Sequence[Recall], learning: Learning, device: torch.device):
        torch.manual_seed(learning.seed)
        self.trained, self.learning = trained, learning
        self.draws = torch.Generator(device).manual_seed(learning.seed)
        longest = max(each.length for each in trained)
        self.model = Recaller(mixer, sight, vocabulary=trained[0].vocabulary, longest=longest).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), weight_decay=learning.weight_decay, betas=(0.9, 0.95), fused=True
        )
        indexers = set(indexer_parameters(self.model))
        self.shortened = [
            [each for each in self.model.parameters() if (each in indexers) == own] for own in (False, True)
        ]
        unseen = torch.Generator(device).manual_seed(learning.seed + 2**40)
        self.unseen = [each.draw(max(1, learning.tokens // each.length), unseen) for each in trained]
        self.losses: list[torch.Tensor] = []
        for shape in trained:
            sum(self._losses(shape, rows=2)).backward()
        self.model.zero_grad()

    def learn(self, seconds: float) -> tuple[float, list[tuple[float, float]]]:
        """Steps until the time is up or all is learned, one at least; (seconds it took, curve)."""
        clock, curve = Budget(seconds), []
        while clock.left or not self.losses:
            self._step(clock.share)
            if len(self.losses) % CHECKED:
                continue
            self.losses[-1].item()  # waits, so that the clock tells the time of work that is done
            began = time.perf_counter()
            found = self._found()
            curve.append((began - clock.began, found[-1]))
            clock = replace(clock, began=clock.began + time.perf_counter() - began)  # looking takes none of the time
            if min(found) >= LEARNED:
                break
        self.losses[-1].item()
        return time.perf_counter() - clock.began, curve

    def mean_loss(self, share: float) -> float:
        """Over the last so large a share of the steps."""
        return torch.stack(self.losses[-max(1, round(share * len(self.losses))) :]).mean().item()

    def _found(self) -> list[float]:
        """Of texts that are not learned from, for each that is trained."""
        return [accuracy(self.model, batch, rows=len(batch.tokens)) for batch in self.unseen]

    def _losses(self, shape: Recall, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return losses(self.model, shape.draw(rows, self.draws))

    def _step(self, share: float) -> None:
        learning, step = self.learning, len(self.losses) + 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step, share, highest=learning.learning_rate, warmup_steps=learning.warmup_steps)
        shape = self.trained[step % len(self.trained)]
        loss, beside = self._losses(shape, max(1, learning.tokens // shape.length))
        (loss + beside).backward()
        for some in self.shortened:  # apart, so that neither loss changes what the other's weights do
            torch.nn.utils.clip_grad_norm_(some, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.detach())


def score_of(mixer: str, asked: argparse.Namespace, trained: Sequence[Recall], tested: Sequence[Recall]) -> Score:
    """One attention trained and tested; what fails is its fault and takes nobody else's results along."""
    learning = Learning(asked.learning_rate, tokens=asked.tokens, seed=asked.seed)
    sight, device = Sight(asked.width, asked.heads, asked.keys), torch.device(asked.device)
    try:
        learner = Learner(mixer, sight, trained, learning, device)
        seconds, curve = learner.learn(asked.seconds)
        draws, right = torch.Generator(device).manual_seed(asked.seed + 2**41), []
        for shape in tested:
            rows = max(1, asked.tokens // shape.length)
            right.append(accuracy(learner.model.eval(), shape.draw(asked.test, draws), rows=rows))
    except Exception as error:
        return Score(mixer, fault=f"{type(error).__name__}: {error}"[:300])
    return Score(mixer, tuple(right), len(learner.losses), seconds, learner.mean_loss(0.1), tuple(curve))


def page(record: dict, machine_line: str) -> Iterator[str]:
    """The scores as Markdown."""
    learning, sight, tested = record["learning"], record["sight"], record["tested"]
    yield from ("# Multi-query associative recall", "", "Made by `benchmarks/mqar.py`.", "")
    yield (
        f"Texts of key-value pairs, in which every key comes again: the share of the values that are found then, in "
        f"per cent, over {record['test']:,} texts of each shape, length:pairs. Trained on "
        f"{', '.join(record['trained'])} in turn, {learning['tokens']:,} tokens a batch and no text twice; a "
        f"vocabulary of {record['vocabulary']:,}, the rest of a text {'any token' if record['noise'] else 'zeros'}. A "
        f"short convolution and one layer of attention: width {sight['width']}, {sight['heads']} heads, no positions, "
        f"and about {sight['keys']} keys to a query where attention is sparse: LSH has {ROUNDS} rounds of two chunks "
        f"of {sight['keys'] // (2 * ROUNDS)}, MoBA blocks of {PAIR}, and NSA blocks of {BLOCK}, its compressed keys "
        f"counted as a query of the longest trained text sees them on average. AdamW at {learning['learning_rate']:g}, "
        f"{record['seconds']:g} s each, or until {100 * LEARNED:g} % of each "
        f"shape that is trained are found."
    )
    yield from (machine_line, "")
    yield f"| attention | {' | '.join(tested)} | steps | seconds | to 95 % of {record['trained'][-1]} |"
    yield f"|---|{'--:|' * (len(tested) + 3)}"
    for row in record["scores"]:
        score = Score(**row)
        if score.fault:
            yield f"| {score.mixer} | failed: {score.fault} |{' |' * (len(tested) + 2)}"
            continue
        right, reached = " | ".join(f"{100 * share:.1f}" for share in score.right), score.seconds_to(0.95)
        reached = "–" if reached is None else f"{reached:.0f} s"
        yield f"| {score.mixer} | {right} | {score.steps:,} | {score.seconds:.0f} | {reached} |"
    yield from ("", f"![]({NAME}.png)")


def run(asked: argparse.Namespace) -> str:
    """Everyone in turn; returns the page."""
    trained, tested = (
        [Recall(length, pairs, asked.vocabulary, noise=not asked.zeros) for length, pairs in shapes]
        for shapes in (asked.trained, asked.tested)
    )
    machine, date, scores, text = machine_of(asked.commit), now(), [], ""
    for mixer in asked.only:
        scores.append(score_of(mixer, asked, trained, tested))
        score = scores[-1]
        found = score.fault or ", ".join(f"{100 * share:.1f}" for share in score.right)
        print(f"{mixer}: {score.steps} steps, {score.seconds:.0f} s, right {found}", flush=True)
        record = {
            "machine": asdict(machine), "date": date, "vocabulary": asked.vocabulary, "noise": not asked.zeros,
            "trained": [named(shape) for shape in trained], "tested": [named(shape) for shape in tested],
            "sight": asdict(Sight(asked.width, asked.heads, asked.keys)), "test": asked.test,
            "learning": asdict(Learning(asked.learning_rate, tokens=asked.tokens, seed=asked.seed)),
            "seconds": asked.seconds, "scores": [asdict(score) for score in scores],
        }  # fmt: skip
        text = write(asked.folder, NAME, record, list(page(record, where(machine, date))))
        save_chart(record, asked.folder / f"{NAME}.png")
    return text


def named(shape: Recall) -> str:
    """length:pairs."""
    return f"{shape.length}:{shape.pairs}"


def _shape(text: str) -> tuple[int, int]:
    length, pairs = text.split(":")
    return int(length), int(pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seconds", type=float, default=30.0)
    flags.add_argument("--only", nargs="+", choices=MIXERS, default=list(MIXERS))
    flags.add_argument("--trained", nargs="+", type=_shape, default=TRAINED)
    flags.add_argument("--tested", nargs="+", type=_shape, default=TESTED)
    flags.add_argument("--zeros", action="store_true", help="0, and not any token, where nothing is asked for")
    for name in ("width", "heads", "keys"):
        flags.add_argument(f"--{name}", type=int, default=getattr(Sight, name))
    for name in ("tokens", "seed"):
        flags.add_argument(f"--{name}", type=int, default=getattr(Learning, name))
    flags.add_argument("--vocabulary", type=int, default=Recall.vocabulary)
    flags.add_argument("--test", type=int, default=1000, help="texts of each shape")
    flags.add_argument("--learning-rate", type=float, default=Learning.learning_rate)
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit")
    print(run(flags.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
