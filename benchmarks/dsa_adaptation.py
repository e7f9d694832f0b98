"""Makes a dense GPT-2 sparse as DeepSeek-V3.2 was made, and writes what its indexers learn and what it costs.

    python benchmarks/dsa_adaptation.py [--seconds 300] [--text FILE ...] [--context 1024] [--topk 128] [--layers 4]
                                        [--width 256] [--heads 4] [--index-heads 4] [--index-width 32] [--batch 32]
                                        [--device cuda] [--folder FOLDER] [--commit COMMIT] ...

A GPT-2 of bytes learns with dense attention; then its indexers learn where it looks, all else frozen (warm-up); then
all of it learns while each query sees `--topk` keys. Beside that the dense model learns on for as many steps. The text
is the source of Python's standard library unless files or folders are named. Writes `dsa_adaptation.json`, `.md` and
`.png`.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tasks.adaptation_chart import save_chart
from tasks.budget import Budget, rate
from tasks.record import machine_of, now, where, write
from tasks.texts import BYTES, Texts

from gossamer.config import GPT2Config, IndexerConfig
from gossamer.models.gpt2 import GPT2
from gossamer.models.initial_weights import with_indexers
from gossamer.training import enter_stage, indexers_of, recall
from gossamer.training.stages import indexer_parameters

RESULTS = Path(__file__).parent / "results"
NAME = "dsa_adaptation"
SHARES = {"dense": 0.4, "warm_up": 0.2, "sparse": 0.25, "dense on": 0.15}
"""Of the time; the last is what as many dense steps take at most."""
RATES = {"dense": 1e-3, "warm_up": 1e-3, "sparse": 2e-4, "dense on": 2e-4}
"""Highest learning rates."""
READ = {"dense": 0, "warm_up": 1, "sparse": 2, "dense on": 2}
"""Which order of the text each reads."""
FACTORS = (0.25, 0.5, 1, 2, 4)
"""Times `--topk` keys, for a sweep of what the indexers have learned by the end of the warm-up."""
LOG2 = math.log(2)
LOOKED = 25
"""Steps between two looks at what is chosen."""


@dataclass
class Curve:
    """What a stage told of its steps."""

    stage: str
    seconds: float = 0.0
    loss: list[float] = field(default_factory=list)
    indexer_loss: list[float] = field(default_factory=list)
    """Of each step, the mean over layers, in nats a query."""
    recall: list[tuple[int, float]] = field(default_factory=list)
    """(step, recall@k on the test text)."""


@dataclass(frozen=True)
class Task:
    """Texts and how they are read."""

    texts: Texts
    context: int
    batch: int
    tested: int
    device: torch.device
    seed: int

    def batches(self, order: int) -> Iterator[torch.Tensor]:
        """Stretches to learn from, always the same ones in the same order."""
        draws = torch.Generator().manual_seed(self.seed + order)
        while True:
            yield self.texts.batch(self.batch, self.context, draws).to(self.device)

    def tests(self) -> torch.Tensor:
        """Stretches to be tested with."""
        return self.texts.tests(self.tested, self.context).to(self.device)


def half(device: torch.device) -> torch.autocast:
    """bfloat16 where the device is a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def learn(model: GPT2, stage: str, task: Task, clock: Budget, *, most: int | None = None) -> Curve:
    """Steps of a stage until the time is up, or so many; one at least. Weights that do not learn in it do not move."""
    chooses = model.config.indexer is not None
    enter_stage(model, stage if chooses else None)  # type: ignore[bad-argument-type]
    learners = [parameter for parameter in model.parameters() if parameter.requires_grad]
    indexers = set(indexer_parameters(model))
    shortened = [[each for each in learners if (each in indexers) == own] for own in (False, True)]
    optimizer = torch.optim.AdamW(learners, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    curve, began, batches, step = Curve(stage), time.perf_counter(), task.batches(READ[stage]), 0
    losses, apart = [], []
    while not step or (clock.left and step != most):
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = rate(
                step, clock.share if most is None else step / most, highest=RATES[stage], warmup_steps=20
            )
        text = next(batches)
        with half(task.device):
            found = model(text[:, :-1], text[:, 1:].contiguous(), indexer_losses=chooses)
        (found.loss + found.indexer_losses.sum() if chooses else found.loss).backward()
        for some in shortened:  # apart, so that neither loss changes what the other's weights do
            torch.nn.utils.clip_grad_norm_(some, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found.loss.detach())
        if chooses:
            apart.append(found.indexer_losses.detach().mean())
            if step == 1 or step % LOOKED == 0:
                curve.recall.append((step, recalled(model, task)))
        if step % 10 == 0:
            losses[-1].item()  # waits, so that the clock tells the time of work that is done
    curve.loss, curve.indexer_loss = ([loss.item() for loss in each] for each in (losses, apart))
    curve.seconds = time.perf_counter() - began
    return curve


@torch.no_grad()
def tested(model: GPT2, task: Task) -> float:
    """Mean loss over the test text, in nats a byte."""
    total = 0.0
    for text in task.tests().split(task.batch):
        with half(task.device):
            total += model(text[:, :-1], text[:, 1:].contiguous()).loss.item() * len(text)
    return total / task.tested


@torch.no_grad()
def recalled(model: GPT2, task: Task, rows: int = 4) -> float:
    """recall@k over some of the test text; where all is chosen there is nothing to miss."""
    with half(task.device):
        _, layers = model.features(task.tests()[:rows, :-1], return_intermediate=True)
    found = recall(indexers_of(model), layers)  # type: ignore[bad-argument-type]
    return 1.0 if found is None else found


def indexed(model: GPT2, indexer: IndexerConfig) -> GPT2:
    """A copy of the model with these indexers: its own, where it has some of the sizes, or new ones."""
    config, state = with_indexers(model.config, {k: v.cpu() for k, v in model.state_dict().items()}, indexer)
    made = GPT2(config)
    made.load_state_dict(state)
    made = made.to(model.wte.weight.device)
    enter_stage(made, "sparse")
    return made


def swept(model: GPT2, indexer: IndexerConfig, task: Task) -> list[dict[str, float]]:
    """Loss and recall with fewer and with more keys than the model was made for, and with a wrong rotation."""
    rows = []
    for topk in sorted(
        {max(1, min(task.context, round(factor * indexer.index_topk))) for factor in FACTORS} | {task.context}
    ):
        other = indexed(model, replace(indexer, index_topk=topk))
        rows.append({"keys": topk, "loss": tested(other, task), "recall": recalled(other, task)})
    turned = replace(indexer, rotary=replace(indexer.rotary, interleaved=not indexer.rotary.interleaved))
    other = indexed(model, turned)
    return [
        *rows,
        {"keys": indexer.index_topk, "turned": True, "loss": tested(other, task), "recall": recalled(other, task)},
    ]


def page(record: dict, machine_line: str) -> Iterator[str]:
    """What was found, as Markdown."""
    shape, indexer, losses = record["shape"], record["indexer"], record["losses"]
    yield from ("# From dense to sparse by indexers", "", "Made by `benchmarks/dsa_adaptation.py`.", "")
    yield (
        f"A GPT-2 of bytes on {record['text']}: {shape['n_layer']} layers, {shape['n_head']} heads, width "
        f"{shape['n_embed']}, {record['context']:,} bytes a sequence, {record['batch']} sequences a step. Each layer's "
        f"indexer has {indexer['index_n_heads']} heads of {indexer['index_head_dim']} and chooses "
        f"{indexer['index_topk']} keys. {record['seconds']:g} s in all."
    )
    yield from (machine_line, "", "| stage | steps | seconds | KL first | KL last | recall@k first | recall@k last |")
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for curve in record["curves"]:
        ends = (curve["indexer_loss"], [share for _, share in curve["recall"]])
        learned = " | ".join(f"{each[0]:.3f} | {each[-1]:.3f}" if each else "\u2013 | \u2013" for each in ends)
        yield f"| {curve['stage']} | {len(curve['loss']):,} | {curve['seconds']:.0f} | {learned} |"
    yield from ("", "| model | test loss, nats a byte | bits a byte |", "|---|--:|--:|")
    for name, loss in losses.items():
        yield f"| {name} | {loss:.4f} | {loss / LOG2:.4f} |"
    yield (
        f"\nThe gap between sparse and dense after the same steps: "
        f"{losses['sparse, learned on'] - losses['dense, learned on']:+.4f} nats a byte."
    )
    yield from ("", "What the indexers have learned by the end of the warm-up, with other numbers of keys:", "")
    yield from ("| keys to a query | test loss | recall@k |", "|--:|--:|--:|")
    for row in record["sweep"]:
        turned = " (rotation of the other layout)" if row.get("turned") else ""
        yield f"| {row['keys']:,}{turned} | {row['loss']:.4f} | {row['recall']:.3f} |"
    yield from ("", f"![]({NAME}.png)")


def run(asked: argparse.Namespace) -> str:
    """All stages; returns the page."""
    device = torch.device(asked.device)
    torch.manual_seed(asked.seed)
    texts = Texts.read(asked.text, most=asked.bytes)
    task = Task(texts, asked.context, asked.batch, asked.tested, device, asked.seed)
    shape = GPT2Config(
        vocab_size=BYTES, context_size=asked.context, n_layer=asked.layers, n_head=asked.heads, n_embed=asked.width
    )
    indexer = IndexerConfig(asked.index_heads, asked.index_width, asked.topk, asked.index_width // 2)
    machine, date, budget, curves, losses = machine_of(asked.commit), now(), Budget(asked.seconds), [], {}

    def staged(model: GPT2, stage: str, name: str, most: int | None = None) -> GPT2:
        curves.append(learn(model, stage, task, Budget(SHARES[stage] * asked.seconds), most=most))
        enter_stage(model, "sparse" if model.config.indexer else None)
        losses[name] = tested(model, task)
        spent = asked.seconds - budget.left
        print(f"{stage}: {len(curves[-1].loss)} steps, {spent:.0f} s, {name} {losses[name]:.4f}", flush=True)
        return model

    dense = staged(GPT2(shape).to(device), "dense", "dense")
    model = indexed(dense, indexer)
    staged(model, "warm_up", "sparse, not adapted")
    sweep = swept(model, indexer, task)
    staged(model, "sparse", "sparse, learned on")
    staged(copy.deepcopy(dense), "dense on", "dense, learned on", most=len(curves[-1].loss))
    record = {
        "machine": asdict(machine), "date": date, "shape": shape.to_dict(), "indexer": asdict(indexer),
        "text": ", ".join(asked.text) or "the source of Python's standard library", "context": asked.context,
        "batch": asked.batch, "seconds": asked.seconds, "curves": [asdict(curve) for curve in curves],
        "losses": losses, "sweep": sweep,
    }  # fmt: skip
    save_chart(record, asked.folder / f"{NAME}.png")
    return write(asked.folder, NAME, record, list(page(record, where(machine, date))))


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seconds", type=float, default=300.0)
    flags.add_argument("--text", nargs="+", default=[], help="files, or folders of Python source")
    sizes = {"context": 1024, "topk": 128, "layers": 4, "width": 256, "heads": 4, "batch": 32, "tested": 64}
    sizes |= {"index-heads": 4, "index-width": 32, "bytes": 8 * 2**20, "seed": 0}
    for name, default in sizes.items():
        flags.add_argument(f"--{name}", type=int, default=default)
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--folder", type=Path, default=RESULTS)
    flags.add_argument("--commit")
    print(run(flags.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
