"""Trains a dense and a sparse GPT-2 on Python's own source, and shows what was gained: `make demo`."""

import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import tyro
from rich.console import Console

from gossamer import GPT2Config, bench, report, training
from gossamer.generation_config import SamplingConfig

PROMPT = "def read_lines(path):\n    "
OURS = {"dense", "sparse", "tokens", "metrics.jsonl", "summary.json", "sample.txt", "report.html"}


@dataclass(frozen=True)
class Demo:
    """Train two GPT-2s that differ in nothing but their attention, and compare them."""

    folder: Path = Path("runs/demo")
    context: int = 4096
    steps: int = 250
    layers: int = 2
    heads: int = 4
    width: int = 128
    vocabulary: int = 1024
    new_tokens: int = 300
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Lengths at which attention by itself is measured, in tokens."""

    def config(self, name: str) -> training.TrainConfig:
        shape = (self.vocabulary, self.context, self.layers, self.heads, self.width)
        every = -(-self.steps // 4)
        return training.TrainConfig(
            model=GPT2Config(*shape, use_sparse_attention=name == "sparse"),
            data=training.DataConfig(folder=str(self.folder / "tokens"), tokenizer="bpe"),
            optimizer=training.OptimizerConfig(learning_rate=3e-3, gradient_clip=0.25),
            schedule=training.ScheduleConfig(warmup_steps=self.steps // 10),
            run=training.RunConfig(
                str(self.folder / name), self.steps, batch_size=1, evaluate_every=every, evaluate_sequences=4
            ),
        )

    def train(self, name: str) -> training.Summary:
        """Trains in a process of its own, so that neither run's memory is counted with the other's."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(training.train, self.config(name)).result()


def main(demo: Demo) -> None:
    if demo.folder.exists() and not {path.name for path in demo.folder.iterdir()} <= OURS:
        sys.exit(f"{demo.folder} holds more than a demo; move it away, or give another --folder")
    shutil.rmtree(demo.folder, ignore_errors=True)
    runs = {name: demo.train(name) for name in ("dense", "sparse")}

    sampling = SamplingConfig(demo.new_tokens, temperature=0.7, top_k=40, seed=0)
    sample = report.written_sample(demo.folder / "sparse", PROMPT, sampling)
    shape = {"heads": demo.heads, "head_width": demo.width // demo.heads}
    settings = bench.BenchConfig(cases=("training",), contenders=("sdpa", "document"), lengths=demo.lengths, **shape)
    measured = bench.run(settings)
    name = f"attention forward and backward, {demo.heads} heads × {shape['head_width']}"
    cost = report.cost_figure(measured, measured.cases[0], name=name, dense="sdpa", sparse="document")
    data = report.comparison(demo.folder, runs, sample=sample, cost=cost, command="make demo")

    report.write_report(demo.folder / "report.html", data)
    report.write_numbers(demo.folder, runs)
    (demo.folder / "sample.txt").write_text(sample.prompt + sample.text, encoding="utf-8")
    Console().print(report.comparison_table(runs))
    print(f"{sample.prompt}{sample.text}\n\nLook at {demo.folder / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Demo))
