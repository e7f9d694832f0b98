"""TileLang's sparse MLA and index, from a checkout's `examples/deepseek_v32`, in the layouts that they are written for.

Queries lie [1, n, H, D], latents [1, n, 1, D] and keys chosen [1, n, 1, k]; a key behind the query is one that is not
there. Its forward comes twice: as written for all GPUs, and in a pipeline of three groups of warps, which leaves out
the sums that the backward needs. Its index writes out all scores before it chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from sys import path

import torch
from torch import Tensor

from gossamer.selectors.quantized import quantized

from .exact import error_of_a_latent, error_of_rows, exact_rows
from .figures import Figure, judged, timed
from .problem import SCALE, VALUE, WIDTH, Problem

MLA = {
    "sparse_mla_fwd": "sparse_mla_fwd_interface",
    "sparse_mla_fwd_pipelined": "sparse_mla_fwd_interface",
    "sparse_mla_bwd": "sparse_mla_bwd",
}
INDEX = {"fp8_lighting_indexer": "mqa_attn_return_logits_interface", "topk_selector": "tl_topk"}

Interface = Callable[..., tuple[Tensor, Tensor]]


def interfaces_of(examples: Path | None, names: dict[str, str]) -> list[Callable]:
    """Those of their modules.

    Raises:
        ImportError: The package or the examples are not there; the message says which.
    """
    if find_spec("tilelang") is None:
        raise ImportError("the package tilelang is not installed")
    if examples is None:
        raise ImportError("--tilelang names no folder of its examples")
    missing = [name for name in names if not (examples / f"{name}.py").is_file()]
    if missing:
        raise ImportError(f"the folder that --tilelang names holds no {missing[0]}.py")
    path.insert(0, str(examples.resolve()))
    try:
        return [getattr(import_module(module), name) for module, name in names.items()]
    finally:
        path.pop(0)


def absent(figure: Figure, error: Exception) -> Figure:
    """The figure without a time, and the first line of why."""
    lines = str(error).splitlines() or [""]
    return replace(figure, absence=f"{type(error).__name__}: {lines[0][:150]}")


def index_of(examples: Path | None, inputs: tuple[Tensor, Tensor, Tensor], problem: Problem) -> Callable[[], Tensor]:
    """A call of their index over the numbers of ours, rounded to eight bits before: int32 [1, n, k], in no order.

    Raises:
        ImportError: The package or the examples are not there.
    """
    score, choose = interfaces_of(examples, INDEX)
    q, k, weights = (x[0] for x in inputs)
    (q8, q_scale), (k8, k_scale) = quantized(q.transpose(0, 1).contiguous()), quantized(k)
    weights = weights * q_scale
    ends = torch.arange(1, problem.tokens + 1, dtype=torch.int32, device=q.device)
    starts = torch.zeros_like(ends)

    def chosen() -> Tensor:
        scores = score(q8, k8, k_scale, weights, starts, ends, clean_logits=False)
        return choose(scores, starts, ends, problem.chosen)[None]

    return chosen


def tilelang_figures(
    problem: Problem, chosen: Tensor, figures: tuple[Figure, Figure], examples: Path | None
) -> Iterator[Figure]:
    """Both forwards and the backward beside those figures of ours, over the same keys; or why they are not there."""
    forward, backward = (replace(each, contender="TileLang") for each in figures)
    try:
        kernels = interfaces_of(examples, MLA)
    except ImportError as error:
        yield from (absent(each, error) for each in (forward, backward))
        return
    contest = Contest(problem, chosen, kernels)
    pipelined = replace(forward, contender="TileLang, pipelined")
    for figure, measured in ((forward, contest.forward), (backward, contest.backward), (pipelined, contest.pipelined)):
        try:
            yield measured(figure)
        except Exception as error:  # whatever a compiler of theirs may raise is why there is no figure
            yield absent(figure, error)


def _second(step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What a call finds, as those that are timed, after one that compiles."""
    step()
    return step()


class Contest:
    """Their kernels, inputs in their layouts, and what is exact."""

    def __init__(self, problem: Problem, chosen: Tensor, kernels: list[Interface]):
        self.problem, self.chosen = problem, chosen
        self._forward, self._pipelined, self._backward = kernels
        self.q = problem.drawn(problem.tokens, problem.heads, WIDTH)
        self.latents = problem.drawn(problem.tokens, 1, WIDTH)
        self.grad = problem.drawn(problem.tokens, problem.heads, VALUE)
        self.indices = chosen.masked_fill(chosen < 0, problem.tokens)[:, :, None].contiguous()
        self.given = self.q.transpose(1, 2), self.latents[:, :, 0], self.grad.transpose(1, 2)
        self.exact = exact_rows(problem, chosen, self.given)

    def forward(self, figure: Figure) -> Figure:
        """The forward for all GPUs."""
        return self._of_output(figure, partial(self._forward, *self._inputs(), sm_scale=SCALE))

    def pipelined(self, figure: Figure) -> Figure:
        """The forward in a pipeline; each position has its key."""
        return self._of_output(figure, partial(self._pipelined, *self._inputs(), 0, 1, sm_scale=SCALE))

    def backward(self, figure: Figure) -> Figure:
        """All that it takes: products of outputs and their gradients, and latents' gradients back in bfloat16."""
        out, lse = self._forward(*self._inputs(), sm_scale=SCALE)
        inputs = self.q, self.latents, out, self.grad, self.indices, lse
        step = partial(self._backward, *inputs, sm_scale=SCALE)
        of_q, of_latents = _second(step)
        of_rows = error_of_rows(self.problem, of_q.transpose(1, 2), self.exact[1])
        of_latent = error_of_a_latent(self.problem, self.chosen, self.given, of_latents[:, :, 0])
        del of_q, of_latents
        return self._timed(replace(figure, error=max(of_rows, of_latent)), step)

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.latents, self.indices

    def _of_output(self, figure: Figure, step: Callable[[], tuple[Tensor, Tensor]]) -> Figure:
        error = error_of_rows(self.problem, _second(step)[0].transpose(1, 2), self.exact[0])
        return self._timed(replace(figure, error=error), step)

    def _timed(self, figure: Figure, step: Callable[[], object]) -> Figure:
        return judged(figure) or timed(figure, step, device=self.problem.device, repeats=self.problem.repeats)
