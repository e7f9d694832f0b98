"""Examples of many lengths as batches of about as many tokens each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from .trees import Example


class Batch(NamedTuple):
    """Texts of about one length, filled up behind."""

    tokens: Int64[Tensor, "B N"]
    lengths: Int64[Tensor, " B"]
    values: Int64[Tensor, " B"]


@dataclass(frozen=True)
class Examples:
    """Texts and their values, on the device where they are learned."""

    tokens: UInt8[Tensor, "M L"]
    lengths: Int64[Tensor, " M"]
    values: Int64[Tensor, " M"]
    widths: NDArray[np.int64]
    """To how many tokens each text is filled up."""

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device, *, step: int = 64) -> Examples:
        """The examples as tensors; a text and one token in front of it are filled up to a multiple of `step`."""
        lengths = np.array([len(tokens) for tokens, _ in examples])
        widths = -(-(lengths + 1) // step) * step - 1
        rows = np.zeros((len(examples), widths.max()), np.uint8)
        for row, (tokens, _) in zip(rows, examples, strict=True):
            row[: len(tokens)] = np.frombuffer(tokens, np.uint8)
        values = torch.tensor([value for _, value in examples], device=device)
        return cls(torch.from_numpy(rows).to(device), torch.from_numpy(lengths).to(device), values, widths)

    def batches(self, tokens: int, *, seed: int | None = None) -> Iterator[Batch]:
        """All examples once, in batches of one width and of up to so many tokens.

        Args:
            seed: Decides the order; None is the order of the widths.
        """
        draws = np.random.default_rng(seed)
        order = np.arange(len(self.widths)) if seed is None else draws.permutation(len(self.widths))
        groups = []
        for width in np.unique(self.widths):
            members, rows = order[self.widths[order] == width], max(1, tokens // int(width))
            groups += [(int(width), members[first : first + rows]) for first in range(0, len(members), rows)]
        for place in range(len(groups)) if seed is None else draws.permutation(len(groups)):
            width, members = groups[place]
            rows = torch.from_numpy(members).to(self.tokens.device)
            yield Batch(self.tokens[rows, :width].long(), self.lengths[rows], self.values[rows])
