"""Plants each fault in the Triton kernels of indexed attention, and prints what their checks say as JSON."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.kernels.indexed_in_interpreter import CHECKS
from tests.kernels.interpreter import tell
from tests.planting import Fault, checked

FAULTS: dict[str, Fault] = {
    "what was summed is not rescaled": Fault(
        "triton.indexed_forward", "mean * shrink[:, None], input", "mean, input", "several tiles of heads and keys"
    ),
    "the tail of what was summed is not rescaled": Fault(
        "triton.indexed_forward", "mean_tail * shrink[:, None]", "mean_tail", "several tiles of heads and keys"
    ),
    "a sink counts nothing": Fault(
        "triton.indexed_forward",
        'tl.where(peak == float("-inf"), 0.0, 1.0)',
        'tl.where(peak == float("-inf"), 0.0, 0.0)',
        "causal, with sinks",
    ),
    "a later key of a block is seen": Fault(
        "triton.indexed_tiles", "(key <= position)", "(key <= position + 1)", "support of blocks"
    ),
    "all key heads have the first choice": Fault(
        "triton.indexed_tiles",
        "lane // (heads.groups // chosen.runs)",
        "lane // heads.groups * chosen.runs",
        "a choice a key head",
    ),
    "every tile has the first heads": Fault(
        "triton.indexed_tiles",
        "place = part * ROWS + tl.arange(0, ROWS)",
        "place = 0 * part + tl.arange(0, ROWS)",
        "several tiles of heads and keys",
    ),
    "the tail of keys is forgotten": Fault(
        "triton.indexed_tiles",
        'product = tl.dot(a_tail, tl.trans(b_tail), product, input_precision="ieee")',
        "product = product * 1.0",
        "tails",
    ),
    "the log-sum-exp pulls the wrong way": Fault(
        "triton.indexed_backward", "delta -= tl.load(grad_lse", "delta += tl.load(grad_lse", "plain"
    ),
    "latents have no gradient as values": Fault(
        "triton.indexed_backward",
        'dk = tl.dot(weight, g_head, dk, input_precision="ieee")',
        "dk = dk * 1.0",
        "latents",
    ),
    "what a hidden key holds reaches a gradient": Fault(
        "triton.indexed_backward",
        "tl.where(seen, grad, 0.0)  # whatever",
        "grad  # whatever",
        "what nobody sees in blocks may hold anything",
    ),
    "a list is one entry too long": Fault(
        "triton.indexed_backward",
        "mask=(at < end)[:, None] & within[None, :]",
        "mask=(at < end + 1)[:, None] & within[None, :]",
        "plain",
    ),
    "a pass forgets the one before": Fault(
        "triton.indexed_backward",
        "found += tl.load(cells, mask=within",
        "found += 0.0 * tl.load(cells, mask=within",
        "several passes",
    ),
    "every part of a list is the first": Fault(
        "triton.indexed_backward",
        "begin += tl.program_id(1) * share",
        "begin += 0 * tl.program_id(1) * share",
        "several parts of lists",
    ),
    "a block's owner sees the future": Fault(
        "triton.indexed_backward",
        "key[:, None] <= (query + axes.offset)[None, :]",
        "key[:, None] <= (query + axes.offset + 1)[None, :]",
        "blocks",
    ),
    "a product below zero has a slope": Fault(
        "triton.chosen_scores", "slope = tl.where(product > 0.0, slope, 0.0)", "slope = slope * 1.0", "scores of plain"
    ),
    "only the first heads look": Fault(
        "triton.chosen_scores", "head = group * repeats + place", "head = 0 * group + place", "mass of shared keys"
    ),
    "a key that stands again counts again": Fault(
        "chosen_rows", "seen_before & (before < number)", "seen_before & (before <= number)", "rows in disorder"
    ),
    "the last place of a number stands": Fault(
        "chosen_rows", "seen & (least == place)", "seen & (least <= place)", "rows out of order"
    ),
}
SOUND = sorted({fault.check for fault in FAULTS.values()})


RUNS = {
    **{f"sound: {check}": partial(checked, CHECKS[check]) for check in SOUND},
    **{f"faulty: {name}": partial(checked, CHECKS[fault.check], fault) for name, fault in FAULTS.items()},
}


if __name__ == "__main__":
    np.seterr(all="ignore")  # a fault may divide by zero
    tell(RUNS)
