"""One optimizer step and one evaluation of a GPT-2."""

import math
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..models.gpt2 import GPT2, IGNORED_TARGET
from ..nn.packing import packed
from ..nn.recomputation import keeping_attention
from . import run_folder
from .beginning import weights_from
from .checkpoint import State
from .config import TrainConfig
from .data import TokenDataset
from .metrics import Row
from .optimizer import adamw
from .recall import recall
from .schedule import learning_rate
from .stages import enter_stage, indexer_parameters, indexers_of

KEPT = {"none": False, "full": True, "selective": keeping_attention}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_SKIPS = 20  # halvings of fp16's loss scale in a row: from 65,536 down to 1/16


class Diverged(RuntimeError):
    """A loss, a gradient or a weight is no longer a finite number; nothing was saved after that.

    Attributes:
        step: The step that found it.
        learning_rate: The learning rate of that step.
    """

    def __init__(self, what: str, step: int, rate: float):
        super().__init__(
            f"step {step}: {what} at learning rate {rate:.3g}; the checkpoints are as they were. Start a new "
            "run with a lower optimizer.learning_rate or more schedule.warmup_steps, and with run.precision "
            "fp32 or bf16 if it was fp16"
        )
        self.step, self.learning_rate = step, rate


class Trainer:
    """A GPT-2 in training: what changes is in `state`, and everything else follows from the configuration and the step.

    In particular the phase follows from the step: its windows, its stage, its data and its learning rate. A resumed
    run therefore finds itself in the phase that it was in.

    Args:
        config: The run; its folder has been made.
        device: Where the model lives.
    """

    def __init__(self, config: TrainConfig, device: torch.device):
        run = config.run
        self._config, self._device, self._skips = config, device, 0
        self._phases = config.phases
        self._read_for(0)
        torch.manual_seed(run.seed)
        vocabulary = self.training_data.shards.vocab_size
        model = GPT2(replace(config.model, unpadded_vocab_size=vocabulary)).to(device)
        model.checkpointing = KEPT[run.activation_checkpointing]
        self._forward = torch.compile(model) if run.compile else model
        self.state = State(
            model,
            adamw(model, config.optimizer),
            torch.amp.GradScaler(device.type, enabled=run.precision == "fp16"),
            tokens=self.training_data.shards.digest,
            seed=run.seed,
        )
        self._learners = self._learners_apart()
        self._arrange()

    def begin(self) -> None:
        """Take the weights that the run begins with from `run.start_from`, if it names a model.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It has another shape, or is damaged.
        """
        if source := self._config.run.start_from:
            self.state.model.load_state_dict(weights_from(source, self.state.model.config))

    def update(self, step: int) -> Row:
        """Do optimizer step number `step`, counted from 1, and say how it went.

        Raises:
            Diverged: The loss or the gradient is not finite; the weights are as they were.
        """
        began = time.perf_counter()
        optimizer, scaler = self.state.optimizer, self.state.scaler
        here = self._enter(step)
        rate = learning_rate(here, self._phases[self._phase])
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens, targets = self.training_data.batch(here - 1)
        losses = self._backward(tokens, targets)
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise Diverged(f"the {name} is {loss}", step, rate)
        scaler.unscale_(optimizer)
        norms = {name: self._clipped(learners) for name, learners in self._learners.items()}
        self._require_progress(max(norms.values()), step, rate)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        self.state.step = step
        seconds = time.perf_counter() - began
        return {
            "step": step,
            "phase": self._phase + 1,
            **losses,
            "learning_rate": rate,
            **{name: norm if math.isfinite(norm) else None for name, norm in norms.items()},
            "tokens_per_second": targets.numel() / seconds,
            "seconds": seconds,
        }

    @torch.no_grad()
    def evaluate(self) -> float:
        """The mean loss over the first sequences of the validation split, in nats per token.

        Raises:
            Diverged: It is not finite.
        """
        self.state.model.eval()
        total, count = 0.0, 0
        for tokens, targets in self.validation_data.in_order(self._config.run.evaluate_sequences):
            total += self._outcome(tokens, targets).loss.item() * _targets(targets)
            count += _targets(targets)
        self.state.model.train()
        if not math.isfinite(total):
            raise self._diverged(f"the validation loss is {total}")
        return total / count

    @torch.no_grad()
    def recall(self) -> float | None:
        """recall@k of the indexers over the first batch of the validation split; see `recall`.

        None where the model has no indexers, they rest, or no query sees more keys than they choose.
        """
        if not self._indexers_learn:
            return None
        tokens, _ = next(self.validation_data.in_order(self._config.run.evaluate_sequences))
        self.state.model.eval()
        with self._precision():
            _, seen = self.state.model.features(self._moved(tokens), return_intermediate=True)
        self.state.model.train()
        return recall(indexers_of(self.state.model), seen)  # type: ignore[bad-argument-type]

    def require_finite(self) -> None:
        """Refuse to go on with weights that are not finite.

        Raises:
            Diverged: One is not.
        """
        for name, parameter in self.state.model.named_parameters():
            if not parameter.isfinite().all():
                raise self._diverged(f"the weights {name} are not finite")

    def _enter(self, step: int) -> int:
        """Make windows and data those of the phase of `step`, and say which step of that phase it is, from 1."""
        phase = 0
        while step > self._phases[phase].steps:
            step, phase = step - self._phases[phase].steps, phase + 1
        if phase != self._phase:
            self._read_for(phase)
            self._arrange()
        return step

    def _read_for(self, phase: int) -> None:
        """Read windows of text as long as the phase wants; each phase shuffles them anew."""
        self._phase, settings, tokens = phase, self._phases[phase], run_folder.tokens_folder(self._config)
        context, batch = settings.context_size, settings.batch_size
        text = partial(TokenDataset, tokens, context_size=context, packing=self._config.data.packing)
        self.training_data = text(split="training", batch_size=batch, seed=self._config.run.seed + phase)
        self.validation_data = text(split="validation", batch_size=-(-batch // settings.gradient_accumulation))

    def _arrange(self) -> None:
        """Make the model that of the phase: its windows, or its stage."""
        phase = self._phases[self._phase]
        if phase.windows:
            self.state.model.widen(phase.windows)
        enter_stage(self.state.model, phase.stage)

    @property
    def _indexers_learn(self) -> bool:
        return self._phases[self._phase].stage in ("warm_up", "sparse")

    def _learners_apart(self) -> dict[str, list[nn.Parameter]]:
        """The weights that learn from the model's loss and those that learn from the indexers': neither shortens the
        other's gradient."""
        indexers = list(indexer_parameters(self.state.model))
        apart = set(indexers)
        others = [parameter for parameter in self.state.model.parameters() if parameter not in apart]
        return {"gradient_norm": others} | ({"indexer_gradient_norm": indexers} if indexers else {})

    def _clipped(self, parameters: list[nn.Parameter]) -> float:
        return nn.utils.clip_grad_norm_(parameters, self._config.optimizer.gradient_clip).item()

    def _backward(self, tokens: Int64[Tensor, "B N"], targets: Int64[Tensor, "B N"]) -> dict[str, float]:
        """Add up the gradient of the mean losses, piece by piece; a piece counts by its targets."""
        pieces, totals, whole = self._phases[self._phase].gradient_accumulation, {}, _targets(targets)
        for part, expected in zip(tokens.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
            share, losses = _targets(expected) / whole, self._losses(part, expected)
            # Each layer's indexer learns from its own loss alone: the sum has the gradient of each.
            whole_loss = torch.cat([loss.flatten() for loss in losses.values()]).sum()
            self.state.scaler.scale(share * whole_loss).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + share * loss.mean().item()
        return totals

    def _losses(self, tokens: Int64[Tensor, "B N"], targets: Int64[Tensor, "B N"]) -> dict[str, Tensor]:
        """The loss and, where indexers learn, those of every layer's indexer."""
        if not self._indexers_learn:
            return {"loss": self._outcome(tokens, targets).loss}
        found = self._outcome(tokens, targets, indexer_losses=True)
        return {"loss": found.loss, "indexer_loss": found.indexer_losses}

    def _outcome(self, tokens: Int64[Tensor, "B N"], targets: Int64[Tensor, "B N"], **asked: Any) -> Any:
        """What the model gives for some sequences, or for the documents that are packed in them: its `GPT2Output`."""
        if (end := self.training_data.end_of_document) is not None:
            tokens, targets, asked["cache"] = packed(tokens, targets, end)
        tokens, targets = self._moved(tokens), self._moved(targets)
        with self._precision():
            return self._forward(tokens, targets, **asked)

    def _precision(self) -> AbstractContextManager:
        dtype = DTYPES[self._config.run.precision]
        return torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32)

    def _moved(self, tokens: Int64[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
        if self._device.type == "cuda":
            return tokens.pin_memory().to(self._device, non_blocking=True)
        return tokens.to(self._device)

    def _diverged(self, what: str) -> Diverged:
        return Diverged(what, self.state.step, self.state.optimizer.param_groups[0]["lr"])

    def _require_progress(self, norm: float, step: int, rate: float) -> None:
        self._skips = 0 if math.isfinite(norm) else self._skips + 1
        if self._skips and not self.state.scaler.is_enabled():
            raise Diverged(f"the gradient's norm is {norm}", step, rate)
        if self._skips > MOST_SKIPS:
            raise Diverged(f"the gradient is not finite {self._skips} steps in a row, whatever the scale", step, rate)


def _targets(targets: Int64[Tensor, "B N"]) -> int:
    return int((targets != IGNORED_TARGET).sum())
