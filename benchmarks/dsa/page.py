"""What was found, as Markdown, and whether promises hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gossamer.bench import Promise, verdict_rows
from gossamer.machine import Machine

from .figures import GIB, Figure

LEAST = {"forward": 450.0, "backward": 230.0}
"""Useful teraflops of attention over latents."""
OF_BLOCKS, OF_TOKENS = {"realistic, forward": 262.0, "realistic, backward": 266.0}, 32_768
"""The same over chosen blocks of so many tokens: twice what was published of native sparse attention."""
OVER_DENSE, LONG = 3.0, 131_072
"""So much faster than dense attention is a layer of so many tokens, or more."""
BOTH = "PyTorch, products"

JUDGED = (
    "bfloat16; milliseconds on the GPU, medians of three. Latents, indices, losses and blocks of ours are timed only "
    "if a few queries' results are those of float64; the layer is made of the first two."
)

WORDS = {
    "latents": "`attend_latent`: 128 heads, latents 576 wide with values of 512, 2,048 keys chosen at random for each "
    "query. Operations are those of chosen pairs: 2 (576 + 512) a pair and head forward, 2 (3 · 576 + 2 · 512) "
    "backward. Our gradients are the same bits at every call. TileLang's kernels are those of its examples, over the "
    "same keys, in their own layouts, and judged as ours are. The error is that of outputs of some queries, or the "
    "larger of those of their gradients and of the gradient of one late latent.",
    "index": "`top_keys`: 64 index heads × 128, 2,048 keys for each of all queries, causal, exact; fp8 rounds queries "
    "and keys within the time. `PyTorch, products` multiplies queries, a few at a time, with the keys that they see, "
    "and calls `topk` on as many scores in float32 that are there already; `PyTorch, weighted` sums products by heads "
    "too. `TileLang` is its examples' index, judged as ours is; numbers are rounded before its time.",
    "layer": "Forward is the index in fp8, the choice and attention over latents; backward that of the attention. "
    "Dense attention has keys 192 and values 128 wide for each of 128 heads. Projections are left out of all.",
    "loss": "`indexer_loss` and its gradients: 64 index heads × 128 learn where 128 heads look among latents 576 wide, "
    "over 2,048 keys chosen at random for each query, as in sparse training, or over all keys, as in the warm-up. "
    "Operations are 2 · 128 · 576 of a pair for where heads look, and 3 · 2 · 64 · 128 for scores and their two "
    "gradients; what is computed twice counts once. The error is the largest of losses of some queries, their "
    "gradients, those of their weights, and that of one late key.",
    "blocks": "`attend_indexed`: 32 query heads and 8 key heads, 128 wide, 16 blocks of 64 keys for each query and key "
    "head, causal. Realistic choices are the first block, the query's own and the one before, and the best by a score "
    "whose correlation falls to 1/e over 128 queries; random ones are the query's own block and 15 earlier ones. "
    "Operations are those of pairs that are seen, 4 · 128 a pair and head forward and 10 · 128 backward, whatever a "
    "contender computes. Ours is timed as a whole call with its list of numbers, forward and backward each turning it "
    "about anew. FlexAttention is compiled; its mask reads a table of who chose what, and the table and the mask of "
    "blocks, 128 by 128, are made outside of the time. The error is that of some queries' outputs, or the largest of "
    "those of their gradients and of the gradients of one late key and value.",
}


def promises(figures: Sequence[Figure]) -> Iterator[Promise]:
    """Those of the figures that are there."""
    of = {(each.section, each.case, each.contender, each.tokens): each for each in figures}
    for (section, case, contender, tokens), figure in of.items():
        if contender != "gossamer":
            continue
        at = f"{case}, {tokens:,} tokens"
        if section == "latents":
            rate = figure.teraflops
            kept = rate is not None and rate >= LEAST[case]
            yield Promise(f"Latents, {at}: at least {LEAST[case]:g} useful TFLOP/s", rate, kept=kept)
        elif section == "index":
            rivals = [of.get((section, case, BOTH, tokens))]
            yield _faster(f"Index, {at}: at least as fast as products and topk", figure, rivals, 1.0)
        elif section == "blocks":
            if case in OF_BLOCKS and tokens == OF_TOKENS:
                rate = figure.teraflops
                kept = rate is not None and rate >= OF_BLOCKS[case]
                yield Promise(f"Blocks, {at}: at least {OF_BLOCKS[case]:g} useful TFLOP/s", rate, kept=kept)
        elif section == "layer" and tokens >= LONG:
            rivals = [
                x for x in figures if (x.section, x.case, x.tokens) == ("layer", case, tokens) and x is not figure
            ]
            yield _faster(f"Layer, {at}: at least {OVER_DENSE:g}x the fastest dense", figure, rivals, OVER_DENSE)


def _faster(text: str, figure: Figure, rivals: Sequence[Figure | None], least: float) -> Promise:
    times = [each.seconds for each in rivals if each is not None and each.seconds is not None]
    ratio = min(times) / figure.seconds if times and figure.seconds else None
    return Promise(text, ratio, kept=ratio is not None and ratio >= least)


def page(figures: Sequence[Figure], machines: dict[str, tuple[Machine, str]]) -> str:
    """Promises first, then a table for each section."""
    lines = ["# DeepSeek sparse attention on one H200", "", "Made by `benchmarks/h200_dsa.py`.", ""]
    lines += ["## Promises", "", *verdict_rows(list(promises(figures))), ""]
    lines += [JUDGED, ""]
    for section, words in WORDS.items():
        own = [each for each in figures if each.section == section]
        if own:
            lines += [f"## {section.capitalize()}", "", words, "", _said(*machines[section]), "", *_table(own), ""]
    shares = list(_shares(figures))
    return "\n".join([*lines, *shares, ""] if shares else lines)


def _shares(figures: Sequence[Figure]) -> Iterator[str]:
    """What the loss adds to a layer."""
    seconds = {(x.section, x.case, x.tokens): x.seconds for x in figures if x.contender == "gossamer"}
    for (section, case, tokens), lesson in seconds.items():
        layer = [seconds.get(("layer", way, tokens)) for way in ("forward", "backward")]
        if section == "loss" and lesson is not None and None not in layer:
            share = lesson / sum(filter(None, layer))
            yield f"- {tokens:,} tokens: over {case} the loss adds {share:.0%} to the layer's forward and backward."


def _said(machine: Machine, date: str) -> str:
    return (
        f"{machine.gpu or machine.cpu}, PyTorch {machine.torch}, Triton {machine.triton}, Gossamer {machine.gossamer}, "
        f"commit {machine.commit or 'not known'}, {date}."
    )


def _table(figures: Sequence[Figure]) -> Iterator[str]:
    yield "| tokens | case | contender | ms | useful TFLOP/s | GiB above inputs | error |"
    yield "|--:|---|---|--:|--:|--:|--:|"
    for each in figures:
        if each.absence is None and each.seconds is not None:
            rate = "" if each.teraflops is None else f"{each.teraflops:.0f}"
            error = "" if each.error is None else f"{each.error:.1e}"
            peak = "" if each.peak is None else f"{each.peak / GIB:.2f}"
            what = f"{each.tokens:,} | {each.case} | {each.contender}"
            yield f"| {what} | {1e3 * each.seconds:.1f} | {rate} | {peak} | {error} |"
    yield ""
    for each in figures:
        if each.absence is not None:
            yield f"- {each.case}, {each.tokens:,}, {each.contender}: {each.absence}"
