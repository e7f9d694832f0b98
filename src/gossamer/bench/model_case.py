"""A whole model: the training step of a GPT-2, dense and sparse."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..config import GPT2Config, SparseAttentionConfig
from ..models.gpt2 import GPT2
from ..nn.sparse import SparseAttention
from ..training.config import OptimizerConfig
from ..training.optimizer import adamw
from .backends import Backends, training_backends
from .case import Case, Contender
from .config import TITLES
from .setting import Setting

TRIAL_LENGTH = 200
TOLERANCE = 1e-4
"""Share of its largest value that a gradient of the two models may differ on the trial."""

Text = tuple[Int64[Tensor, "B N"], Int64[Tensor, "B N"]]


def model_case(setting: Setting) -> Case:
    """One training step of a small GPT-2 on random tokens: forward, backward and AdamW."""
    judge = cache(partial(model_fault, setting))
    sparse = SparseAttentionConfig().for_heads(setting.config.heads)
    batch = setting.config.batch
    contenders = (
        Contender("gpt2 dense", lambda n: training_step(setting, n, batch=batch), judge),
        Contender(
            "gpt2 sparse",
            lambda n: training_step(setting, n, sparse, batch=batch),
            judge,
            backends=partial(model_backends, setting, sparse),
        ),
    )
    return Case(TITLES["model"], setting.config.model.lengths, contenders)


@dataclass(frozen=True)
class TrainingStep:
    """Forward, backward and AdamW on the same text at each call."""

    model: GPT2
    forward: Callable[..., Any]
    """The model itself, or compiled."""
    optimizer: torch.optim.Optimizer
    text: Text
    dtype: torch.dtype
    """What autocast computes in; float32 turns it off."""

    def __call__(self) -> None:
        self.loss(self.forward).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, forward: Callable[..., Any]) -> Float[Tensor, ""]:
        """By one of the two forwards."""
        with torch.autocast(self.text[0].device.type, self.dtype, enabled=self.dtype != torch.float32):
            return forward(*self.text).loss


def training_step(
    setting: Setting, length: int, sparse: SparseAttentionConfig | None = None, *, batch: int
) -> TrainingStep:
    """A step of a fresh model, dense without a `sparse` configuration."""
    torch.manual_seed(setting.config.seed)
    model = _model(setting, length, sparse)
    return TrainingStep(model, model, adamw(model, OptimizerConfig()), _text(setting, length, batch), setting.dtype)


def model_backends(setting: Setting, sparse: SparseAttentionConfig, length: int) -> Backends:
    """What runs the attention of a sparse model's training step, whose key heads are its query heads."""
    return training_backends(Setting(replace(setting.config, key_heads=None)), sparse.pattern(length), length)


def model_fault(setting: Setting) -> str | None:
    """Whether the sparse model, told to see everything, has the loss and the gradients of the dense one."""
    n = TRIAL_LENGTH
    everything = SparseAttentionConfig(adaptive_window=False, window_size=n, global_token_ratio=1.0)
    dense_model = _model(setting, n, None)
    sparse_model = _model(setting, n, everything.for_heads(setting.config.heads))
    sparse_model.load_state_dict(dense_model.state_dict())
    text = _text(setting, n, setting.config.batch)
    ours, theirs = (_loss_and_gradients(model, text) for model in (sparse_model, dense_model))
    for name, expected in theirs.items():
        error, largest = (ours[name] - expected).abs().max().item(), expected.abs().max().item()
        if not error <= TOLERANCE * largest:
            return f"{name} of the sparse model that sees everything is {error:.2e} off the dense one's"
    return None


def precision_fault(setting: Setting, sparse: SparseAttentionConfig, length: int) -> str | None:
    """Whether the model is as exact, in the benchmark's precision, as the same one by the document's dense formula.

    Its loss and each gradient may be twice as far from those in float64, and one rounding more.
    """
    torch.manual_seed(setting.config.seed)
    model = _model(setting, length, sparse)
    text = _text(setting, length, 1)
    ours = _loss_and_gradients(model, text, setting.dtype)
    for attention in model.modules():
        if isinstance(attention, SparseAttention):
            attention.forward = partial(_by_the_formula, attention)  # type: ignore[method-assign]
    plain = _loss_and_gradients(model, text, setting.dtype)
    exact = _loss_and_gradients(model.double(), text)
    for name, right in exact.items():
        error, allowed = (ours[name] - right).norm().item(), (plain[name] - right).norm().item()
        if not error <= 2 * allowed + torch.finfo(setting.dtype).eps / 2 * right.norm().item():
            return f"{name} of the sparse model is {error:.2e} off, by the dense formula {allowed:.2e}"
    return None


def _by_the_formula(attention: SparseAttention, x: Tensor, *_: object, **__: object) -> Tensor:
    return attention.forward_dense(x)


def _model(setting: Setting, length: int, sparse: SparseAttentionConfig | None) -> GPT2:
    c = setting.config
    config = GPT2Config(
        vocab_size=c.model.vocabulary,
        context_size=length,
        n_layer=c.model.layers,
        n_head=c.heads,
        n_embed=c.heads * c.head_width,
        use_sparse_attention=sparse is not None,
        sparse_config=sparse,
    )
    with setting.device:  # a GPU draws the weights at once
        return GPT2(config)


def _text(setting: Setting, length: int, batch: int) -> Text:
    """Random tokens and their successors, [B, N] each."""
    tokens = torch.randint(setting.config.model.vocabulary, (batch, length + 1), device=setting.device)
    return tokens[:, :-1], tokens[:, 1:]


def _loss_and_gradients(model: GPT2, text: Text, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """In float64, by autocast to `dtype` unless that is float32; the model is left without gradients."""
    with torch.autocast(text[0].device.type, dtype, enabled=dtype != torch.float32):
        loss = model(*text).loss
    loss.backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"the loss": loss.detach().double(), **gradients}
