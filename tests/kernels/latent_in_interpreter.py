"""Runs the kernels around those over chosen latents in Triton's interpreter, and prints what fails as JSON: the lists
of what groups of queries read, the products of outputs and their gradients, and the sums of what is due to latents."""

from __future__ import annotations

from functools import partial
from unittest import mock

import torch

from gossamer.kernels import chosen_rows
from gossamer.kernels.hopper import latent_lists, latent_sum
from gossamer.kernels.hopper.latent_delta import delta_of
from gossamer.kernels.hopper.latent_lists import GroupLists, group_lists
from gossamer.kernels.hopper.latent_sum import add_owed, in_order, owed_to
from gossamer.selectors.selection import Selection
from tests.kernels.interpreter import tell

KINDS = ("random", "ascending", "ascending with a hole", "twice", "too late", "nothing")


def rows(kind: str, queries: int, keys: int, chosen: int) -> torch.Tensor:
    """Indices [2, queries, chosen]."""
    drawn = torch.stack([torch.randperm(keys)[:chosen].sort().values for _ in range(2 * queries)])
    drawn = drawn.view(2, queries, -1)
    if kind == "random":
        return torch.randint(-2, keys + 2, (2, queries, chosen))
    if kind == "ascending with a hole":
        drawn[:, :, drawn.shape[2] // 2] = -1
    if kind == "twice":
        drawn[:, :, 1:2] = drawn[:, :, :1]
    if kind == "too late":
        drawn[:, :, -1] = keys
    return torch.full_like(drawn, -1) if kind == "nothing" else drawn


def check_lists(kind: str, together: int, causal: bool) -> None:
    for queries, keys, chosen in ((7, 100, 9), (5, 33, 33), (9, 9, 4)):
        indices = rows(kind, queries, keys, chosen)
        patched = mock.patch.multiple(latent_lists, multiprocessors=lambda device: 1, TILE=16)
        with patched, mock.patch.object(chosen_rows, "TILE", 16):
            lists, blind = group_lists(Selection(indices, causal=causal), keys, together)
        for b in range(2):
            for group in range(lists.counts.shape[1]):
                wanted: dict[int, int] = {}
                for m, query in enumerate(range(group * together, min((group + 1) * together, queries))):
                    limit = keys - queries + query + 1 if causal else keys
                    for key in set(indices[b, query].tolist()):
                        if 0 <= key < limit:
                            wanted[key] = wanted.get(key, 0) | 1 << m
                count = lists.counts[b, group]
                assert lists.entries[b, group, :count].tolist() == sorted(wanted)
                if lists.members is not None:
                    assert lists.members[b, group, :count].tolist() == [wanted[key] for key in sorted(wanted)]
        if together > 1:
            limits = torch.arange(keys - queries, keys)[:, None] + 1 if causal else keys
            assert torch.equal(blind, ~((indices >= 0) & (indices < limits)).any(-1))


def check_delta() -> None:
    out, grad = torch.randn(2, 11, 3, 512).transpose(1, 2), torch.randn(2, 3, 11, 512)
    grad_lse = torch.randn(2, 3, 11)
    wanted = (out.double() * grad).sum(-1)
    for given, less in ((None, 0.0), (grad_lse, grad_lse)):
        assert torch.allclose(delta_of(out, grad, given).double(), wanted - less, atol=1e-4)


def check_sums(block: int) -> None:
    """A chunk that crosses from one sequence to the next; one latent is in all lists but one, some are in none."""
    keys, groups, places, parts, chunk = 13, 4, 6, 2, (2, 4)
    entries = torch.stack([torch.randperm(keys)[:places].sort().values for _ in range(2 * groups)]).int()
    entries[:, 0] = 0
    counts = torch.randint(1, places + 1, (2, groups)).int()
    counts[1, 1] = 0
    lists = GroupLists(entries.view(2, groups, places), counts, None)
    scratch = torch.randn(chunk[1] * parts, places, 576, dtype=torch.float16)
    totals, wanted = torch.randn(2, keys, 576), torch.zeros(2, keys, 576)
    wanted += totals
    with mock.patch.object(latent_sum, "BLOCK", block):
        add_owed(scratch, owed_to(lists, keys, chunk), totals, parts=parts, places=places)
    for group in range(chunk[1]):
        b, g = divmod(chunk[0] + group, groups)
        for place in range(int(lists.counts[b, g])):
            for part in range(parts):
                wanted[b, lists.entries[b, g, place]] += scratch[group * parts + part, place].float()
    assert torch.allclose(totals, wanted, atol=1e-5)
    column = torch.arange(576)
    thread, pair, within = column // 2 % 4, column // 8 % 4, column % 2
    stands = column // 32 * 32 + 8 * thread + 2 * pair + within
    assert torch.equal(in_order(totals, torch.float32), totals[..., stands])


CHECKS = {
    f"{kind}, {together} together{', causal' * causal}": partial(check_lists, kind, together, causal)
    for kind in KINDS
    for together in (1, 2, 8)
    for causal in (False, True)
} | {"delta": check_delta, **{f"sums, blocks of {block}": partial(check_sums, block) for block in (1, 2, 3, 64)}}


if __name__ == "__main__":
    tell(CHECKS)
