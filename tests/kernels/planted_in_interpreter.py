"""Plants each fault in kernels that Triton's interpreter runs, and prints what their checks say as JSON.

A program of its own, because Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from gossamer.kernels.triton.top_keys import TRITON_SELECTION
from gossamer.patterns import Causal, Documents, PerHead, RandomBlocks, Tokens, Window
from tests.checks import Setting, check_empty_rows, check_error, check_no_leak, check_support, check_views, draw
from tests.hashed_checks import CASES as HASHED_CASES
from tests.hashed_checks import check_hash
from tests.kernels import (
    columns_in_interpreter,
    decode_in_interpreter,
    hashed_in_interpreter,
    row_parts_in_interpreter,
    row_shares_in_interpreter,
    warm_up_in_interpreter,
)
from tests.kernels.interpreter import tell
from tests.kernels.triton_in_interpreter import check_dropout_as_tiled
from tests.layouts import Shown, check_layout
from tests.patterns_list import PATTERNS
from tests.planting import Fault, checked
from tests.top_keys_checks import CASES as INDEX_CASES
from tests.top_keys_checks import check_definition, check_selection

SMALL = Setting(heads=1, queries=40, dtype=torch.float32, backend="triton")
LOCAL = Causal() & Window(20)
SHARED = replace(SMALL, heads=2, key_heads=1)
MASKED = RandomBlocks(16, 3, 0) & ~Window(20)
DRAWN = PerHead([(RandomBlocks(16, 2, seed), 1) for seed in range(2)])
DECODED = (
    "causal, one query",
    "causal window, one query",
    "causal window, three queries",
    "documents, one query",
    "sixteen queries",
)

HASHED = {
    name: replace(HASHED_CASES[name], heads=1, batch=1, length=40, within=None) for name in ("paper", "trax", "stops")
} | {"padded": replace(HASHED_CASES["padded, trax"], heads=1, batch=1, length=40, within=((5, 33),))}

BEST = "many ties", "zeros of both signs", "not numbers"
"""Kinds of scores."""


def check_decoding(name: str) -> None:
    """The error of the listed case is within its bound."""
    case = decode_in_interpreter.CASES[name]
    assert decode_in_interpreter.error(case) < decode_in_interpreter.bound(case)


CHECKS: dict[str, Callable[[], None]] = {
    "support": partial(check_support, LOCAL, replace(SMALL, width=64)),
    "no leak": partial(check_no_leak, Causal(), SMALL, [20]),
    "error": lambda: check_error(draw(Causal(), replace(SMALL, queries=70))),
    "error, sinks": lambda: check_error(draw(LOCAL, replace(SMALL, heads=2, sinks=True))),
    "error, shared keys": lambda: check_error(draw(LOCAL, SHARED)),
    "error, heads apart": lambda: check_error(draw(PATTERNS["uneven heads"], replace(SMALL, heads=6, key_heads=1))),
    "error, many passes": lambda: check_error(draw(LOCAL | Tokens([3, 35]).T, SMALL)),
    "error, few keys": lambda: check_error(draw(Tokens([3, 50]), replace(SHARED, heads=4, queries=130))),
    "error, within ends": lambda: check_error(draw(LOCAL, replace(SMALL, batch=2, within=((0, 40), (9, 30))))),
    "empty rows": partial(check_empty_rows, Documents([3, 20]), SMALL),
    "views": partial(check_views, LOCAL, replace(SMALL, heads=2, queries=20)),
    "dropout": partial(check_dropout_as_tiled, LOCAL, SHARED),
    "dropout, fewer keys": partial(check_dropout_as_tiled, LOCAL, replace(SMALL, keys=30)),
    "blocks, support": partial(check_support, MASKED, replace(SMALL, queries=70, width=72)),
    "blocks, error": lambda: check_error(draw(DRAWN, replace(SMALL, heads=2, queries=70, sinks=True))),
    "blocks, shared keys": lambda: check_error(draw(DRAWN, replace(SHARED, queries=70))),
    "blocks, beside a band": lambda: check_error(draw(DRAWN | Window(3), replace(SMALL, heads=2, queries=70))),
    "blocks, empty rows": partial(check_empty_rows, RandomBlocks(16, 1, 0), SMALL),
    "blocks, dropout": partial(check_dropout_as_tiled, DRAWN, replace(SHARED, queries=70)),
    "blocks, within": partial(check_layout, replace(SMALL, queries=70), Shown(within=((5, 50),))),
    "blocks, layouts of sequences": partial(check_layout, replace(SMALL, batch=2), Shown(own_batch=True)),
    **{f"decoding, {name}": partial(check_decoding, name) for name in DECODED},
    **{
        f"hashed, {name}": partial(hashed_in_interpreter.BY_TRITON, case, torch.float32)
        for name, case in HASHED.items()
    },
    "hash": partial(check_hash, (6, 8), torch.float32),
    "hash by many columns": partial(check_hash, (150, 1), torch.float16),
    **{f"best of {kind}": partial(check_selection, TRITON_SELECTION.select, kind, keys=203) for kind in BEST},
    "best of a long row": partial(check_selection, TRITON_SELECTION.select, "normal", rows=4, keys=5003),
    **{
        f"best of a long row, {kind}": partial(
            check_selection, TRITON_SELECTION.select, kind, rows=4, keys=5003, count=200
        )
        for kind in ("whole numbers", "next to one another")
    },
    "best by an index": partial(check_definition, replace(INDEX_CASES["square"], queries=9, batch=1), backend="triton"),
    "lesson": warm_up_in_interpreter.CHECKS["within"],
    "gathered": columns_in_interpreter.CHECKS["gathered: sorted"],
    "written": columns_in_interpreter.CHECKS["written: sorted"],
    "written twice": columns_in_interpreter.CHECKS["written: every key twice"],
    "added": columns_in_interpreter.CHECKS["added: sorted"],
    "merged": row_parts_in_interpreter.CHECKS["merged: within ends"],
    "summed": row_parts_in_interpreter.CHECKS["summed: within ends"],
    "joined": row_shares_in_interpreter.CHECKS["joined: three rows"],
    "sums of shares": row_shares_in_interpreter.CHECKS["sums: many shares"],
}

FAULTS: dict[str, Fault] = {
    "all that equal the last chosen are chosen": Fault(
        "triton.top_keys_select",
        "is_larger | (is_equal & (equals <= equal))",
        "is_larger | is_equal",
        "best of many ties",
    ),
    "a zero is less than another": Fault(
        "triton.top_keys_select",
        "tl.where((bits & 0x7FFFFFFF) == 0, 0x80000000, key)",
        "key",
        "best of zeros of both signs",
    ),
    "what is no number is above all": Fault(
        "triton.top_keys_select",
        "((bits & 0x7FFFFFFF) > 0x7F800000) | (bits == 0xFF800000)",
        "bits == 0xFF800000",
        "best of not numbers",
    ),
    "a long row loses what a later tile puts aside": Fault(
        "triton.top_keys_select",
        "place = before + (tl.cumsum(own, 0) - own)[:, None]",
        "place = (tl.cumsum(own, 0) - own)[:, None]",
        "best of a long row",
    ),
    "what parts the chosen from the others is not chosen itself": Fault(
        "triton.top_keys_select",
        "tl.where(parted, low - 1, low)",
        "low",
        "best of a long row, next to one another",
    ),
    "one more is above the last chosen": Fault(
        "triton.top_keys_select",
        "high, above = middle, reach",
        "high, above = middle, reach + 1",
        "best of a long row, whole numbers",
    ),
    "heads and queries are mistaken for one another": Fault(
        "triton.top_keys_scores",
        "tl.sum(tl.reshape(product, (KEYS, QUERIES, HEADS)), 2)",
        "tl.sum(tl.reshape(product, (KEYS, HEADS, QUERIES)), 1)",
        "best by an index",
    ),
    "a head is taught by more than its probabilities": Fault(
        "triton.warm_up_tiles",
        "tl.exp2(product * unit - norm[:, None])",
        "tl.exp2(product * unit)",
        "lesson",
    ),
    "a key learns from the last head alone": Fault(
        "triton.warm_up_tiles",
        'made = tl.dot(of_product.to(q_tile.dtype), q_tile, made, input_precision="ieee")',
        'made = tl.dot(of_product.to(q_tile.dtype), q_tile, input_precision="ieee")',
        "lesson",
    ),
    "the ends of the first sequence count for all": Fault(
        "triton.tiles",
        "run.start + batch * run.apart, run.stop + batch * run.apart",
        "run.start, run.stop",
        "error, within ends",
    ),
    "the far side of an axis is forgotten": Fault(
        "triton.hashing",
        "tl.where(best >= -worst, at, under + HALF)",
        "at",
        "hash",
    ),
    "later columns are never furthest": Fault(
        "triton.hashing",
        "tl.range(0, HALF, COLUMNS)",
        "tl.range(0, COLUMNS, COLUMNS)",
        "hash by many columns",
    ),
    "a token of two rounds counts twice": Fault(
        "triton.hashed_tiles",
        "product -= tl.log2(",
        "product -= 0.0 * tl.log2(",
        "hashed, paper",
    ),
    "the first chunk meets the last": Fault(
        "triton.hashed_tiles",
        "(chunk >= 0) & (chunk < count)",
        "chunk < count",
        "hashed, stops",
    ),
    "rounds do not look across their edge": Fault(
        "triton.hashed_tiles",
        "return place // count, place % count, place >= 0",
        "return turn, place % count, place >= 0",
        "hashed, trax",
    ),
    "the future of a chunk is seen": Fault(
        "triton.hashed_tiles",
        "visible & (key <= query)",
        "visible & (key <= query + 1)",
        "hashed, trax",
    ),
    "a token sees itself": Fault(
        "triton.hashed_tiles",
        "tl.where(itself, ALONE, product)",
        "product",
        "hashed, trax",
    ),
    "results stay where they were sorted": Fault(
        "triton.hashed_forward",
        "store_tile(out, batch, head, query,",
        "store_tile(out, batch, head, place,",
        "hashed, stops",
    ),
    "a round forgets those before": Fault(
        "triton.hashed_forward",
        "    if FIRST:",
        "    if True:",
        "hashed, paper",
    ),
    "what does not exist is a key": Fault(
        "triton.hashed_forward",
        "real & (spot < known) & there",
        "real & there",
        "hashed, padded",
    ),
    "a key's gradient is that of a vector of any length": Fault(
        "triton.hashed_backward",
        "dk -= k_tile *",
        "dk -= 0.0 * k_tile *",
        "hashed, trax",
    ),
    "gradients of earlier rounds are dropped": Fault(
        "triton.hashed_backward",
        "dk += load_tile(held, batch",
        "dk += 0.0 * load_tile(held, batch",
        "hashed, paper",
    ),
    "the forward's window is one key too wide": Fault(
        "triton.forward",
        "inside(at[None, :], start[:, None], length[:, None])",
        "inside(at[None, :], start[:, None] - 1, length[:, None] + 1)",
        "support",
    ),
    "the forward's window is one key too narrow": Fault(
        "triton.forward",
        "inside(at[None, :], start[:, None], length[:, None])",
        "inside(at[None, :], start[:, None] + 1, length[:, None] - 1)",
        "support",
    ),
    "the backward masks no tile": Fault(
        "triton.backward",
        "if is_cut(first, bounds, QUERIES):",
        "if False:",
        "support",
    ),
    "the last tile of a run counts as whole": Fault(
        "triton.tiles",
        "(first < bounds[2]) | (first + SIZE > bounds[3])",
        "first < bounds[2]",
        "no leak",
    ),
    "the output is not rescaled for a new maximum": Fault(
        "triton.forward",
        "mean * shrink[:, None]",
        "mean",
        "error",
    ),
    "the sum is not rescaled for a new maximum": Fault(
        "triton.forward",
        "total * shrink + tl.sum(weight, 1)",
        "total + tl.sum(weight, 1)",
        "error",
    ),
    "every head has the first head's sink": Fault(
        "triton.forward",
        "sinks + head",
        "sinks",
        "error, sinks",
    ),
    "a second pass takes natural logarithms for those of base 2": Fault(
        "triton.forward",
        "exists) * LOG2E",
        "exists)",
        "error, many passes",
    ),
    "the log-sum-exp of an empty row is finite": Fault(
        "triton.forward",
        "peak + tl.log2(total)",
        "tl.maximum(peak, -1e30) + tl.log2(tl.maximum(total, 1e-30))",
        "empty rows",
    ),
    "an empty row is NaN": Fault(
        "triton.forward",
        "mean / tl.where(total == 0.0, 1.0, total)[:, None]",
        "mean / total[:, None]",
        "empty rows",
    ),
    "a shared key's gradient is its last head's": Fault(
        "triton.backward",
        "for step in tl.range(0, tiles",
        "for step in tl.range(tiles * (heads.repeats - 1), tiles",
        "error, shared keys",
    ),
    "a later run of heads overwrites the keys' gradient": Fault(
        "triton.launches",
        "splits=1, adds=not fresh)",
        "splits=1, adds=False)",
        "error, heads apart",
    ),
    "the first part of a split sum is dropped": Fault(
        "triton.launches",
        "self.heads.batch)).sum(0)",
        "self.heads.batch))[1:].sum(0)",
        "error, few keys",
    ),
    "the output's gradient is read with wrong strides": Fault(
        "triton.launches",
        "(self.q, self.k, self.v)), Vector.of(come.lse), Matrix.of(come.grad_out)",
        "(self.q, self.k, self.v)), Vector.of(come.lse), Matrix.of(come.grad_out)._replace(row=2)",
        "views",
    ),
    "the gradient of the log-sum-exp has the wrong sign": Fault(
        "rows",
        "delta -= load_vector(grad_lse",
        "delta += load_vector(grad_lse",
        "error",
    ),
    "the queries' gradient drops other pairs": Fault(
        "triton.backward",
        "drawn[:, None], key[None, :]",
        "drawn[:, None], key[None, :] + 1",
        "dropout",
    ),
    "the keys' gradient drops other pairs": Fault(
        "triton.backward",
        "drawn_for(dropout, batch, query_head,",
        "drawn_for(dropout, batch, head,",
        "dropout",
    ),
    "dropped pairs are counted from query 0": Fault(
        "triton.tiles",
        "(query + dropout.offset)",
        "query",
        "dropout, fewer keys",
    ),
    "a partial block counts as whole": Fault(
        "triton.block_tiles",
        "mask=mask >= 0, other=1",
        "mask=mask > 99, other=1",
        "blocks, support",
    ),
    "the mask of a block is the one before": Fault(
        "triton.block_tiles",
        "mask.to(tl.int64) * (SIZE * SIZE)",
        "tl.maximum(mask - 1, 0).to(tl.int64) * (SIZE * SIZE)",
        "blocks, support",
    ),
    "masks are not turned over for the keys": Fault(
        "block_tables",
        "table.tiles.mT.contiguous()",
        "table.tiles",
        "blocks, support",
    ),
    "blocks are not turned over for the keys": Fault(
        "block_tables",
        "return BlockTable(table.size, starts, counts, row[order], tile",
        "return BlockTable(table.size, starts, counts, row, tile",
        "blocks, error",
    ),
    "a row's first block counts twice": Fault(
        "triton.blocks_forward",
        "entry = start + step // PARTS",
        "entry = start + tl.maximum(step // PARTS - 1, 0)",
        "blocks, error",
    ),
    "every head has the first head's layout": Fault(
        "triton.block_tiles",
        "tl.load(table.layout + batch * table.batch + head)",
        "tl.load(table.layout + batch * table.batch)",
        "blocks, error",
    ),
    "every sequence has the first one's layout": Fault(
        "triton.block_tiles",
        "tl.load(table.layout + batch * table.batch + head)",
        "tl.load(table.layout + head)",
        "blocks, layouts of sequences",
    ),
    "keys behind the last one are seen": Fault(
        "triton.block_tiles",
        "(begin < other_bounds[0]) | (begin + OTHER > other_bounds[1])",
        "begin < other_bounds[0]",
        "blocks, layouts of sequences",
    ),
    "the bounds of a sequence are one key wide of it": Fault(
        "triton.block_tiles",
        "(place >= bounds[0]) & (place < bounds[1])",
        "(place >= bounds[0]) & (place <= bounds[1])",
        "blocks, within",
    ),
    "queries outside their sequence see": Fault(
        "triton.block_tiles",
        "if within is not None:",
        "if False:",
        "blocks, within",
    ),
    "the sum over blocks is not rescaled for a new maximum": Fault(
        "triton.blocks_forward",
        "total * shrink + tl.sum(weight, 1)",
        "total + tl.sum(weight, 1)",
        "blocks, error",
    ),
    "a query without blocks is NaN": Fault(
        "triton.blocks_forward",
        "mean / tl.where(total == 0.0, 1.0, total)[:, None]",
        "mean / total[:, None]",
        "blocks, empty rows",
    ),
    "a band forgets the blocks beside it": Fault(
        "triton.launches",
        'self._constants("forward") | {"RUNS": len(each.spans), "CONTINUES": number > 0}',
        'self._constants("forward") | {"RUNS": len(each.spans), "CONTINUES": number > 1}',
        "blocks, beside a band",
    ),
    "blocks of shared keys give the last head's gradient": Fault(
        "triton.blocks_backward",
        "for repeat in tl.range(0, heads.repeats):",
        "for repeat in tl.range(heads.repeats - 1, heads.repeats):",
        "blocks, shared keys",
    ),
    "the keys of a block drop the pairs of another head": Fault(
        "triton.blocks_backward",
        "drawn_for(dropout, batch, query_head, query)",
        "drawn_for(dropout, batch, head, query)",
        "blocks, dropout",
    ),
    "decoding takes one key too many": Fault(
        "triton.decode",
        "tl.maximum(lowest - high, 0)",
        "tl.maximum(lowest - high - 1, 0)",
        "decoding, causal window, one query",
    ),
    "decoding masks one key too few": Fault(
        "triton.decode",
        "(distance <= high)",
        "(distance <= high + 1)",
        "decoding, causal window, three queries",
    ),
    "decoding knows the capacity and no length": Fault(
        "triton.decode",
        "length = tl.minimum(tl.load(lengths + batch), keys).to(tl.int32)",
        "length = keys",
        "decoding, causal window, one query",
    ),
    "decoding takes the first sequence's length": Fault(
        "triton.decode",
        "tl.load(lengths + batch)",
        "tl.load(lengths)",
        "decoding, causal window, one query",
    ),
    "decoding does not rescale for a new maximum": Fault(
        "triton.decode",
        "acc * fading[:, None]",
        "acc",
        "decoding, sixteen queries",
    ),
    "decoding loses the first split": Fault(
        "triton.decode",
        "parts = tl.where(written, lses,",
        "parts = tl.where(written & (number > 0), lses,",
        "decoding, causal, one query",
    ),
    "decoding gives an empty row a finite log-sum-exp": Fault(
        "triton.decode",
        'tl.store(lse + row, tl.where(total > 0, peak + tl.log2(divisor), float("-inf"))',
        "tl.store(lse + row, (peak + tl.log2(divisor))",
        "decoding, documents, one query",
    ),
    "rows are gathered as they stand": Fault(
        "hopper.columns",
        "head * k_head + key * k_row",
        "head * k_head + place.to(tl.int64) * k_row",
        "gathered",
    ),
    "sums are written at the next key": Fault(
        "hopper.columns",
        "head * dk_head + key * dk_row",
        "head * dk_head + (key + 1) * dk_row",
        "written",
    ),
    "a row that is outside is not cleared": Fault(
        "hopper.columns",
        "inside & tl.load(outside + each)",
        "inside & (each > 1) & tl.load(outside + each)",
        "written",
    ),
    "the first part of a sum is dropped": Fault(
        "hopper.columns",
        "tl.range(0, count * copies,",
        "tl.range(1, count * copies,",
        "written",
    ),
    "of a key that is listed twice one copy counts": Fault(
        "hopper.columns",
        "(each - part * copies) * further",
        "0 * further",
        "written twice",
    ),
    "rows in shares are joined as equals": Fault(
        "hopper.row_shares",
        "values *= weights[:, None]",
        "values *= tl.where(weights > 0, 1.0, 0.0)[:, None]",
        "joined",
    ),
    "rows in shares go back to the next query": Fault(
        "hopper.row_shares",
        "head * x_head + query * x_row",
        "head * x_head + (query - 1) * x_row",
        "joined",
    ),
    "the last shares of many are dropped": Fault(
        "hopper.row_shares",
        "    acc = tl.zeros([PADDED], tl.float32)\n    for begin in range(0, shares, TOGETHER):",
        "    acc = tl.zeros([PADDED], tl.float32)\n    for begin in range(0, TOGETHER, TOGETHER):",
        "sums of shares",
    ),
    "sums overwrite what they belong to": Fault(
        "hopper.columns",
        "if ADDS:",
        "if False:",
        "added",
    ),
    "parts forget what stands before them": Fault(
        "hopper.row_parts",
        "total = tl.exp(before - base)",
        "total = 0.0 * tl.exp(before - base)",
        "merged",
    ),
    "queries outside their sequence see what their parts see": Fault(
        "hopper.row_parts",
        'tl.where(inside, tl.load(lse + at), float("-inf"))',
        "tl.load(lse + at)",
        "merged",
    ),
    "parts are summed into every row of their block alike": Fault(
        "hopper.row_parts",
        "tile % TILES * ROWS + tl.arange(0, ROWS)",
        "tl.arange(0, ROWS)",
        "summed",
    ),
    "keys outside their sequence have a gradient": Fault(
        "hopper.row_parts",
        "sums = tl.where(inside[:, None], sums, 0.0)",
        "sums = sums * 1.0",
        "summed",
    ),
}


RUNS = {
    **{f"sound: {check}": partial(checked, CHECKS[check]) for check in CHECKS},
    **{f"faulty: {name}": partial(checked, CHECKS[fault.check], fault) for name, fault in FAULTS.items()},
}


if __name__ == "__main__":
    np.seterr(all="ignore")  # a fault may divide by zero
    tell(RUNS)
