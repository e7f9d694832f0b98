"""Tells which package of Python's standard library an excerpt of source comes from, by Longformer's encoder.

The first token is global: it sees every word, and the head reads it alone. Every fourth file is kept for the test.
"""

import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from gossamer.config import LongformerConfig
from gossamer.models import Longformer

PADDING, START, WORDS = range(3)  # tokens: the filler, the global one, and the first word


@dataclass(frozen=True)
class Classify:
    """Train on excerpts of some files, then tell excerpts of other files apart."""

    packages: tuple[str, ...] = ("asyncio", "email", "multiprocessing", "unittest", "xml")
    library: Path = Path(sysconfig.get_path("stdlib"))
    steps: int = 200
    length: int = 512
    """Words and signs of an excerpt."""
    vocabulary: int = 4096
    """Words share this many numbers, by their checksum."""
    window: int = 32
    width: int = 64
    batch: int = 16
    seed: int = 0

    def model(self) -> Longformer:
        shape = LongformerConfig(
            WORDS + self.vocabulary, self.width, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=4 * self.width, attention_window=self.window, max_position_embeddings=self.length + 2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=PADDING,
            num_labels=len(self.packages),
        )  # fmt: skip
        return Longformer(shape, head="classification")

    def texts(self, package: str) -> tuple[Tensor, Tensor]:
        """The tokens of a package's files end to end: those to learn from, and those of the test."""
        paths = [path for path in sorted((self.library / package).rglob("*.py")) if "test" not in path.parts]
        kept, learned = self.tokens(paths[::4]), self.tokens([path for at, path in enumerate(paths) if at % 4])
        if min(len(learned), len(kept)) < self.length:
            sys.exit(f"{self.library / package} has too little source to learn from and to test; give other --packages")
        return learned, kept

    def tokens(self, paths: list[Path]) -> Tensor:
        words = re.findall(rb"\w+|[^\w\s]", b" ".join(path.read_bytes() for path in paths))
        return torch.tensor([WORDS + crc32(word) % self.vocabulary for word in words])


def main(asked: Classify) -> tuple[float, float]:
    torch.manual_seed(asked.seed)
    learned, kept = zip(*map(asked.texts, asked.packages), strict=True)
    model = asked.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=asked.steps)
    for step in range(asked.steps):
        classes = torch.randint(len(learned), (asked.batch,))
        firsts = [int(torch.randint(len(learned[c]) - asked.length + 1, ())) for c in classes]
        excerpts = [learned[c][first : first + asked.length] for c, first in zip(classes, firsts, strict=True)]
        loss = model(F.pad(torch.stack(excerpts), (1, 0), value=START), classes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)

    right, counts = 0, []
    for label, text in enumerate(kept):
        excerpts = F.pad(text.unfold(0, asked.length, asked.length), (1, 0), value=START)
        with torch.no_grad():
            told = torch.cat([model(some).logits.argmax(1) for some in excerpts.split(asked.batch)])
        right += int((told == label).sum())
        counts.append(len(excerpts))
    ours, commonest = right / sum(counts), max(counts) / sum(counts)
    print(f"{sum(counts)} excerpts of other files: {ours:.1%} right; the commonest package is {commonest:.1%} of them")
    return ours, commonest


if __name__ == "__main__":
    main(tyro.cli(Classify))
