"""The operator behind `top_keys`: `opcheck`, torch.compile, and the work that it says it does."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gossamer.indexed import top_keys
from tests.top_keys_checks import CASES, draw


@pytest.mark.parametrize("name", ["square", "visible", "nothing there"])
@pytest.mark.parametrize("precision", ["as given", "fp8"])
def test_the_operator_keeps_torch_s_rules(name: str, precision: str) -> None:
    given = draw(CASES[name], torch.float32)
    torch.library.opcheck(torch.ops.gossamer.top_keys, (*given, 8, True, True, precision, None))


def test_it_compiles_to_one_graph() -> None:
    given = draw(CASES["square"], torch.float32)[:3]
    found = torch.compile(top_keys, backend="eager", fullgraph=True)(*given, 8)
    assert torch.equal(found, top_keys(*given, 8))


def test_work_is_that_of_every_pair() -> None:
    q, k, weights, _ = draw(CASES["square"], torch.float32)
    with FlopCounterMode(display=False) as counter:
        top_keys(q, k, weights, 8)
    assert counter.get_flop_counts()["Global"][torch.ops.gossamer.top_keys] == 2 * 2 * 3 * 70 * 70 * 16
