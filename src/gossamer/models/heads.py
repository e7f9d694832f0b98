"""What stands on an encoder: the pooler, and heads for masked tokens, classes and answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..config import EncoderConfig, ReformerConfig
from ..nn.activations import ACTIVATIONS
from ..nn.loss import linear_cross_entropy

IGNORED_TARGET = -100


class Encoded(NamedTuple):
    """What a head reads: the last block's output, and what it was made from."""

    features: Float[Tensor, "B N E"]
    tokens: Int64[Tensor, "B N"]
    starts: Int64[Tensor, " B"] | None
    """Where each sequence begins; None: at position 0."""
    table: Float[Tensor, "V E"]
    """The token table."""

    def first(self) -> Float[Tensor, "B E"]:
        """The features of each sequence's first token, which padding before it does not move."""
        if self.starts is None:
            return self.features[:, 0]
        index = self.starts[:, None, None].expand(-1, 1, self.features.shape[2])
        return self.features.gather(1, index)[:, 0]


class Head(nn.Module):
    """What stands on an encoder: it makes something of the features, and may have a loss."""

    def require_targets(self, targets: Tensor, tokens: Int64[Tensor, "B N"]) -> None:
        """Targets are what `loss` takes for such tokens, or this raises ValueError; call it before computing.

        Shape and dtype are always checked, values on a CPU alone: reading a GPU's would wait for it, and while
        `torch.compile` traces there are none.
        """
        raise ValueError(f"{type(self).__name__} has no loss; leave targets out, or choose another head")

    def loss(self, encoded: Encoded, targets: Tensor) -> Float[Tensor, ""]:
        """How far what this head makes is from `targets`."""
        raise ValueError(f"{type(self).__name__} has no loss; leave targets out, or choose another head")


class Pooler(Head):
    """The first token's features through a linear layer and tanh, as BERT's next-sentence task left them."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, encoded: Encoded) -> Float[Tensor, "B E"]:
        return torch.tanh(self.dense(encoded.first()))


class MaskedLMHead(Head):
    """Logits of the token at each position; the output layer is the token table itself, with a bias of its own."""

    def __init__(self, config: EncoderConfig, activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, encoded: Encoded) -> Float[Tensor, "B N V"]:
        return F.linear(self._read(encoded.features), encoded.table, self.bias)

    def require_targets(self, targets: Tensor, tokens: Int64[Tensor, "B N"]) -> None:
        require_classes(targets, tokens.shape, len(self.bias))

    def loss(self, encoded: Encoded, targets: Int64[Tensor, "B N"]) -> Float[Tensor, ""]:
        """Mean cross-entropy (in nats) where `targets` is not -100; 0 where it is so everywhere.

        Only positions with a target have logits, and few at a time.
        """
        asked = targets != IGNORED_TARGET  # one in seven, as a rule
        x = self._read(encoded.features[asked])
        targets = targets[asked][None]
        return linear_cross_entropy(x[None], encoded.table, targets, bias=self.bias, ignored=IGNORED_TARGET)

    def _read(self, x: Float[Tensor, "*B E"]) -> Float[Tensor, "*B E"]:
        return self.norm(self.activation(self.dense(x)))


class ClassificationHead(Head):
    """Logits of each class, from the sequence's first token."""

    def __init__(
        self,
        config: EncoderConfig | ReformerConfig,
        activation: str,
        dropout: float,
        *,
        width: int | None = None,
    ):
        """`width` is that of the features, where it is not `hidden_size`."""
        super().__init__()
        self.problem = config.problem_type
        self.activation = ACTIVATIONS[activation]
        self.drop = nn.Dropout(dropout)
        self.dense = nn.Linear(config.hidden_size if width is None else width, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, encoded: Encoded) -> Float[Tensor, "B C"]:
        return self.out(self.drop(self.activation(self.dense(self.drop(encoded.first())))))

    def require_targets(self, targets: Tensor, tokens: Int64[Tensor, "B N"]) -> None:
        batch, labels, problem = len(tokens), self.out.out_features, self._problem(targets)
        why = f" for {problem}, or set problem_type"
        if problem == "single_label_classification":
            require_classes(targets, (batch,), labels, why)
            return
        shapes = [(batch,), (batch, 1)] if labels == 1 else [(batch, labels)]
        if targets.is_complex() or tuple(targets.shape) not in shapes:
            raise ValueError(f"targets are {targets.dtype} {list(targets.shape)}; give numbers {list(shapes[0])}{why}")
        if not _are_read(targets):
            return
        if problem == "regression":
            _require_values(targets, targets.isfinite(), "give finite numbers")
        else:
            _require_values(targets, (targets >= 0) & (targets <= 1), f"give 0.0 to 1.0{why}")

    def loss(self, encoded: Encoded, targets: Tensor) -> Float[Tensor, ""]:
        """Cross-entropy of int64 classes [B] but for -100, or squared error of numbers [B] where there is one label.

        Several labels at once, each from 0.0 to 1.0 [B, C], have binary cross-entropy. All are means. `problem_type`
        overrides what the targets look like.
        """
        logits, problem = self(encoded), self._problem(targets)
        if problem == "single_label_classification":
            return mean_cross_entropy(logits, targets)
        targets = targets.to(logits.dtype).reshape(logits.shape)
        of = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        return of(logits, targets)

    def _problem(self, targets: Tensor) -> str:
        if self.problem is not None:
            return self.problem
        if self.out.out_features == 1:
            return "regression"
        return "multi_label_classification" if targets.is_floating_point() else "single_label_classification"


class QuestionAnsweringHead(Head):
    """Logits of an answer's first and last token at each position, side by side."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        if config.num_labels != 2:
            raise ValueError(f"num_labels is {config.num_labels}; give 2 to answer questions: an answer has two ends")
        self.span = nn.Linear(config.hidden_size, 2)

    def forward(self, encoded: Encoded) -> Float[Tensor, "B N 2"]:
        return self.span(encoded.features)

    def require_targets(self, targets: Tensor, tokens: Int64[Tensor, "B N"]) -> None:
        require_classes(targets, (len(tokens), 2), None)

    def loss(self, encoded: Encoded, targets: Int64[Tensor, "B 2"]) -> Float[Tensor, ""]:
        """Mean of both ends' cross-entropy; -100 and a target behind the sequence have no part in it."""
        logits = self(encoded)
        targets = targets.where((targets >= 0) & (targets < logits.shape[1]), IGNORED_TARGET)
        first, last = (mean_cross_entropy(logits[..., end], targets[:, end]) for end in (0, 1))
        return (first + last) / 2


def mean_cross_entropy(logits: Float[Tensor, "B C"], targets: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
    """Of the targets that are not -100; 0 where there is none."""
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="sum")
    return total / (targets != IGNORED_TARGET).sum().clamp(min=1)


def require_classes(targets: Tensor, shape: tuple[int, ...], classes: int | None, why: str = "") -> None:
    """Targets are int64 of this shape, each below `classes` or -100, or this raises ValueError.

    Args:
        classes: How many there are; None: any number.
        why: Stands behind the fix of a wrong shape.
    """
    if targets.dtype != torch.int64 or targets.shape != shape:
        raise ValueError(f"targets are {targets.dtype} {list(targets.shape)}; give int64 {list(shape)}{why}")
    if not _are_read(targets):
        return
    below = (targets >= 0) if classes is None else (targets >= 0) & (targets < classes)
    known = "0 or more" if classes is None else f"0 to {classes - 1}"
    _require_values(targets, below | (targets == IGNORED_TARGET), f"give {known}, or {IGNORED_TARGET} to leave one out")


def _are_read(targets: Tensor) -> bool:
    """Whether their values are checked, as `Head.require_targets` says; fake tensors have none."""
    return targets.device.type == "cpu" and not torch.compiler.is_compiling() and not isinstance(targets, FakeTensor)


def _require_values(targets: Tensor, right: Tensor, fix: str) -> None:
    if not right.all():
        raise ValueError(f"targets hold {targets[~right][0].item()}; {fix}")
