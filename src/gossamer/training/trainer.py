"""One optimizer step and one evaluation of a GPT-2."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from signal import Signals
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..models.gpt2 import GPT2
from ..nn.recomputation import keeping_attention
from . import run_folder
from .beginning import weights_from
from .checkpoint import State
from .communication import learning_bytes
from .config import TrainConfig
from .data import TokenDataset
from .distributed import DTYPES, World, give_up_gathered, load_weights, local, loss_scaler, parallelized
from .guard import Guard
from .metrics import Row
from .operations import packed_attention
from .optimizer import adamw
from .piece import Piece, piece_of
from .random_states import seed_random_states
from .recall import recalled
from .schedule import learning_rate
from .stages import enter_stage, indexer_parameters, indexers_of

KEPT = {"none": False, "full": True, "selective": keeping_attention}
STOPPING = (Signals.SIGTERM, Signals.SIGINT)


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
            "fp32 or bf16 if it was fp16; or resume it with another guard"
        )
        self.step, self.learning_rate = step, rate


class Trainer:
    """A GPT-2 in training: what changes is in `state`, and everything else follows from the configuration and the step.

    In particular the phase follows from the step: its windows, its stage, its data and its learning rate. A resumed
    run therefore finds itself in the phase that it was in.

    Args:
        config: The run; its folder has been made.
        world: Who trains it, and where this process's share of it lives.

    Attributes:
        stop: The signal by which any of the processes was asked to stop before the last update, as all of them know.
        beat: Called with what this process does next, for whoever watches it.
        packed_attention: Operations of attention in the last update, of all processes, where documents are packed.
    """

    def __init__(self, config: TrainConfig, world: World):
        run = config.run
        self._config, self._world, self._device = config, world, world.device
        self.stop: Signals | None = None
        self.beat: Callable[[str], None] = lambda doing: None
        self._phases = config.phases
        self._guard, self._exchanged, self.packed_attention = Guard(config.guard), 0, 0
        self._read_for(0)
        torch.manual_seed(run.seed)
        vocabulary = self.training_data.shards.vocab_size
        model = GPT2(replace(config.model, unpadded_vocab_size=vocabulary))
        model.checkpointing = KEPT[run.activation_checkpointing]
        self._forward = parallelized(model, world, config)
        self.state = State(
            model,
            adamw(model, config.optimizer),
            loss_scaler(config, world.device),
            tokens=self.training_data.shards.digest,
            seed=run.seed,
            memories={"guard": self._guard},
        )
        self._learners = self._learners_apart()
        self._arrange()

    def begin(self) -> None:
        """Take the weights that the run begins with from `run.start_from`, if it names a model.

        All processes begin with the same weights, and from here on draw random numbers of their own.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It has another shape, or is damaged.
        """
        if source := self._config.run.start_from:
            load_weights(self.state.model, weights_from(source, self.state.model.config))
        if self._world.rank:  # each drops out others
            seed_random_states(self._config.run.seed, step=0, rank=self._world.rank)

    def update(self, step: int, *, asked: Signals | None = None) -> Row:
        """Do optimizer step number `step`, counted from 1, and say how it went. All processes say the same.

        A step that the guard finds fault with changes no weight, and its row says why it was `skipped`.

        Args:
            asked: The signal by which this process was asked to stop, which the others learn of.

        Raises:
            Diverged: More steps in a row were left out than the guard allows; the weights are as they were.
        """
        began = time.perf_counter()
        optimizer, scaler = self.state.optimizer, self.state.scaler
        here = self._enter(step)
        rate = learning_rate(here, self._phases[self._phase])
        for group in optimizer.param_groups:
            group["lr"] = rate
        totals = self._backward(*self.training_data.batch(here - 1, self._world.data))
        self.beat("agrees with the others")
        losses, correction = self._agreed(totals, asked)
        scaler.unscale_(optimizer)
        if correction != 1.0:
            self._lengthen(correction)
        norms = self._lengths()
        fault = self._guard.fault(losses, norms)
        if self._guard.is_exhausted:
            raise Diverged(f"{fault}, and the {self._guard.skips - 1} steps before it were left out,", step, rate)
        self.beat("updates weights")
        if fault is None:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        self.state.step = step
        seconds = time.perf_counter() - began
        return {
            "step": step,
            "phase": self._phase + 1,
            **_finite(losses),
            "learning_rate": rate,
            **_finite(norms),
            "tokens_per_second": self._expected / seconds,
            "seconds": seconds,
            "communication_bytes": self._exchanged + self._learning_bytes,
            **({} if fault is None else {"skipped": fault}),
        }

    @torch.no_grad()
    def evaluate(self) -> float:
        """The mean loss over the first sequences of the validation split, in nats per token.

        Raises:
            Diverged: It is not finite.
        """
        total, count = 0.0, 0
        with self._judged():
            for batch in self.validation_data.in_order(self._config.run.evaluate_sequences):
                counts, *own = self._own_rows(*batch)
                piece = self._piece(*own)
                self.beat("evaluates")
                loss = self._outcome(piece).loss.item()
                if counts:
                    total += loss * piece.counted
                    count += piece.counted
        total, count = self._world.summed([total, count])
        if not math.isfinite(total):
            raise self._diverged(f"the validation loss is {total}")
        return total / count

    @torch.no_grad()
    def recall(self) -> float | None:
        """recall@k of the indexers over the first batch of the validation split; see `gossamer.training.recall`.

        None where the model has no indexers, they rest, or no query sees more keys than they choose.
        """
        if not self._indexers_learn:
            return None
        counts, *own = self._own_rows(*next(self.validation_data.in_order(self._config.run.evaluate_sequences)))
        with self._judged(), self._precision():
            seen = self._forward(*map(self._moved, own), return_intermediate=True).intermediates
        found = recalled(indexers_of(self.state.model), seen) if counts else (0, 0)  # type: ignore[bad-argument-type]
        hits, most = self._world.summed(found)
        return hits / most if most else None

    def _own_rows(self, *batch: Int64[Tensor, "B N"]) -> tuple[bool, *tuple[Int64[Tensor, "b N"], ...]]:
        """(whether this process has sequences of a batch, its rows of each tensor).

        Who has none goes through one all the same: the others may wait for its share of the weights.
        """
        rows = self._world.data.among(len(batch[0]))
        taken = slice(rows.start, rows.stop) if rows else slice(1)
        return bool(rows), *(part[taken] for part in batch)

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Within the block the model drops nothing; after it, it is as it was before."""
        self.state.model.eval()
        try:
            yield
        finally:
            self.state.model.train()
            give_up_gathered(self.state.model)

    def require_finite(self) -> None:
        """Refuse to go on with weights that are not finite.

        Raises:
            Diverged: One is not.
        """
        parameters = dict(self.state.model.named_parameters())
        spoiled = torch.stack([~local(parameter).isfinite().all() for parameter in parameters.values()])
        for name, anywhere in zip(parameters, self._world.summed(spoiled.tolist()), strict=True):
            if anywhere:
                raise self._diverged(f"the weights {name} are not finite")

    def _enter(self, step: int) -> int:
        """Make windows and data those of the phase of `step`, and say which step of that phase it is, from 1."""
        phase = 0
        while step > self._phases[phase].steps:
            step, phase = step - self._phases[phase].steps, phase + 1
        if phase != self._phase:
            self._read_for(phase)
            self._arrange()
        self._guard.enter(phase)
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
        phase, model = self._phases[self._phase], self.state.model
        if phase.windows:
            model.widen(phase.windows)
        before = [parameter.requires_grad for parameter in model.parameters()]
        enter_stage(model, phase.stage)
        if self._is_ddp and before != [parameter.requires_grad for parameter in model.parameters()]:
            self._forward = parallelized(model, self._world, self._config)  # it waits for what learns to have gradients

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

    def _lengths(self) -> dict[str, float]:
        """The lengths of the gradients, each shortened where it is too long: to the last bit the same in all processes,
        as they decide the same by them."""
        own = [self._clipped(learners) for learners in self._learners.values()]
        sums = self._world.summed(own)
        return {name: total / self._world.size for name, total in zip(self._learners, sums, strict=True)}

    def _clipped(self, parameters: list[nn.Parameter]) -> float:
        """The length of a gradient, whoever holds it, which is shortened where it is too long."""
        norm = nn.utils.clip_grad_norm_(parameters, self._config.optimizer.gradient_clip)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    @property
    def _expected(self) -> int:
        """Targets of a step in all processes, if none is left out."""
        phase = self._phases[self._phase]
        return phase.batch_size * phase.context_size

    @property
    def _learning_bytes(self) -> int:
        pieces = self._phases[self._phase].gradient_accumulation
        return learning_bytes(self.state.model, self._config, self._world, pieces=pieces)

    def _backward(self, tokens: Int64[Tensor, "B N"], targets: Int64[Tensor, "B N"]) -> dict[str, float]:
        """Add up the gradient of the losses, piece by piece; give this process's share of their means, its targets, the
        bytes that its attention has sent and, where documents are packed, its operations.

        A piece counts by its targets, as if no target of the step were left out: how many are is known to all
        processes only later.
        """
        pieces = self._phases[self._phase].gradient_accumulation
        totals = {"targets": 0.0, "sent": 0.0, "attention": 0.0}
        for number, part in enumerate(zip(tokens.tensor_split(pieces), targets.tensor_split(pieces), strict=True), 1):
            self.beat("goes forward")
            piece = self._piece(*part)
            with self._apart_until(number == pieces):
                share, losses = piece.counted / self._expected, self._losses(piece)
                # Each layer's indexer learns from its own loss alone: the sum has the gradient of each.
                whole_loss = torch.cat([loss.flatten() for loss in losses.values()]).sum()
                self.beat("goes backward")
                # Over the processes gradients are averaged, and are to be summed.
                self.state.scaler.scale(share * self._world.size * whole_loss).backward()
            totals["targets"] += piece.counted
            totals["sent"] += piece.sent
            totals["attention"] += self._packed_attention(piece)  # while a GPU is still at work
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + share * loss.mean().item()
        for parameter in self.state.model.parameters():
            if not parameter.requires_grad:  # a sharded weight has a gradient even where it rests
                parameter.grad = None
        return totals

    def _apart_until(self, last: bool) -> AbstractContextManager:
        """With DDP, gradients are summed over the processes once a step; with FSDP2 at each piece, for want of room."""
        return self._forward.no_sync() if self._is_ddp and not last else nullcontext()  # type: ignore[missing-attribute]

    def _agreed(self, totals: dict[str, float], asked: Signals | None) -> tuple[dict[str, float], float]:
        """(the mean losses over all processes, by what the gradients must be multiplied for targets left out)."""
        sums = self._world.summed([*totals.values(), *(float(asked is number) for number in STOPPING)])
        self.stop = next((number for number, times in zip(STOPPING, sums[len(totals) :], strict=True) if times), None)
        losses = dict(zip(totals, sums, strict=False))
        self._exchanged, self.packed_attention = int(losses.pop("sent")), int(losses.pop("attention"))
        correction = self._expected / max(1, losses.pop("targets"))
        return {name: loss * correction for name, loss in losses.items()}, correction

    def _packed_attention(self, piece: Piece) -> int:
        """Of all who share a sequence the first one counts."""
        if piece.documents is None or self._world.context.place:
            return 0
        return packed_attention(self.state.model, piece.documents, self._phases[self._phase].context_size)

    def _lengthen(self, times: float) -> None:
        for parameter in self.state.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(times)

    def _piece(self, tokens: Int64[Tensor, "B N"], targets: Int64[Tensor, "B N"]) -> Piece:
        end = self.training_data.end_of_document
        return piece_of(tokens, targets, self._world, self._config.parallel, end=end)

    @property
    def _is_ddp(self) -> bool:
        return isinstance(self._forward, DistributedDataParallel)

    def _losses(self, piece: Piece) -> dict[str, Tensor]:
        """The loss and, where indexers learn, those of every layer's indexer."""
        if not self._indexers_learn:
            return {"loss": self._outcome(piece).loss}
        found = self._outcome(piece, indexer_losses=True)
        return {"loss": found.loss, "indexer_loss": found.indexer_losses}

    def _outcome(self, piece: Piece, **asked: bool) -> Any:
        """What the model gives for it: its `GPT2Output`."""
        around = {} if piece.around is None else {"cache": piece.around}
        tokens, targets = self._moved(piece.tokens), self._moved(piece.targets)
        with self._precision():
            return self._forward(tokens, targets, **around, **asked)

    def _precision(self) -> AbstractContextManager:
        dtype = DTYPES[self._config.run.precision]
        return torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32)

    def _moved(self, tokens: Int64[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
        if self._device.type == "cuda":
            return tokens.pin_memory().to(self._device, non_blocking=True)
        return tokens.to(self._device)

    def _diverged(self, what: str) -> Diverged:
        return Diverged(what, self.state.step, self.state.optimizer.param_groups[0]["lr"])


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    """As JSON can hold them."""
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}
