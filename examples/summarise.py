"""Summarises documents by a prefix language model: the document is read both ways in a window, the summary sees it all.

The documents are drawn here, and a few of their sentences begin with a mark. The summary is the words of these in their
order, so every word of it is right or wrong.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from gossamer import GPT2Config, TransformerBlock, attend
from gossamer.nn.self_attention import SelfAttention
from gossamer.patterns import presets

PLAIN, MARKED, BEGIN, WORDS = range(4)  # how a sentence begins, how a summary does, and the first word


@dataclass(frozen=True)
class Summarise:
    """Train on drawn documents, then summarise new ones."""

    steps: int = 1200
    sentences: int = 8
    marked: int = 3
    """Sentences of a document that belong to its summary."""
    words: int = 4
    """Words of a sentence; none stands twice in a document."""
    vocabulary: int = 128
    window: int = 8
    width: int = 64
    batch: int = 32
    seed: int = 0

    def drawn(self, count: int) -> tuple[Tensor, Tensor]:
        """Documents [count, sentences · (1 + words)] and their summaries [count, marked · words]."""
        order = torch.rand(count, self.vocabulary).argsort(1)[:, : self.sentences * self.words]
        words = WORDS + order.unflatten(1, (self.sentences, self.words))
        chosen = torch.rand(count, self.sentences).argsort(1) < self.marked
        begins = torch.where(chosen, MARKED, PLAIN)[..., None]
        return torch.cat([begins, words], dim=2).flatten(1), words[chosen].reshape(count, -1)


class PrefixAttention(SelfAttention):
    """The document sees a window of itself, the summary all before it."""

    def __init__(self, shape: GPT2Config, prefix: int, window: int):
        super().__init__(shape.n_head, shape.n_embed)
        self.seen = presets.prefix_lm(prefix, window)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
        return attend(q, k, v, self.seen)


class Summariser(nn.Module):
    """Logits of a summary's next word at its beginning and after each of its words."""

    def __init__(self, asked: Summarise):
        super().__init__()
        prefix = asked.sentences * (1 + asked.words)
        shape = GPT2Config(WORDS + asked.vocabulary, prefix + asked.marked * asked.words, 2, 4, asked.width)
        self.tokens = nn.Parameter(0.1 * torch.randn(shape.vocab_size, asked.width))  # to read and to write by
        self.places = nn.Parameter(0.1 * torch.randn(shape.context_size, asked.width))
        self.blocks = nn.Sequential(*(TransformerBlock(shape) for _ in range(shape.n_layer)))
        for block in self.blocks:
            block.attn = PrefixAttention(shape, prefix, asked.window)
        self.norm = nn.LayerNorm(asked.width)

    def forward(self, document: Tensor, summary: Tensor) -> Tensor:  # [B, P], [B, S] -> [B, 1 + S, V]
        read = torch.cat([document, torch.full_like(document[:, :1], BEGIN), summary], dim=1)
        x = self.blocks(self.tokens[read] + self.places[: read.shape[1]])
        return F.linear(self.norm(x[:, document.shape[1] :]), self.tokens)


def main(asked: Summarise) -> tuple[float, float]:
    torch.manual_seed(asked.seed)
    model = Summariser(asked)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=asked.steps)
    for step in range(asked.steps):
        document, summary = asked.drawn(asked.batch)
        loss = F.cross_entropy(model(document, summary[:, :-1]).flatten(0, 1), summary.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)

    document, summary = asked.drawn(256)
    written = summary[:, :0]
    with torch.no_grad():
        for _ in range(summary.shape[1]):
            written = torch.cat([written, model(document, written)[:, -1:].argmax(-1)], dim=1)
    ours = (written == summary).float().mean().item()
    first = document.unflatten(1, (asked.sentences, -1))[:, : asked.marked, 1:].flatten(1)
    lead = (first == summary).float().mean().item()
    print(f"words right: {ours:.1%}; where the first {asked.marked} sentences are the summary: {lead:.1%}")
    return ours, lead


if __name__ == "__main__":
    main(tyro.cli(Summarise))
