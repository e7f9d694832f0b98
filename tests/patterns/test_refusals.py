"""Every bad setting gives one message that names the pattern, the argument, the value and the fix."""

from collections.abc import Callable

import numpy as np
import pytest

from gossamer.patterns import (
    Blocks,
    BlockWindow,
    Causal,
    Dilated,
    Documents,
    GlobalBlocks,
    Pattern,
    PerHead,
    RandomBlocks,
    Sinks,
    Strided,
    Tokens,
    Window,
    presets,
)

REFUSED: list[tuple[Callable[[], Pattern], str]] = [
    (lambda: Window(0), r"Window: size is 0; give an integer of at least 1"),
    (lambda: Window(-3), r"Window: size is -3; .* at least 1"),
    (lambda: Window(2.0), r"Window: size is 2\.0; .* integer"),
    (lambda: Window(float("nan")), r"Window: size is nan; .* integer"),
    (lambda: Window("3"), r"Window: size is '3'; .* integer"),
    (lambda: Window(None), r"Window: size is None; .* integer"),
    (lambda: Window(True), r"Window: size is True; .* integer"),
    (lambda: Window(10**30), r"Window: size is 10+; give an integer below 2\*\*63"),
    (lambda: Dilated(0, 2), r"Dilated: size is 0; .* at least 1"),
    (lambda: Dilated(2, 0), r"Dilated: step is 0; .* at least 1"),
    (lambda: Strided(0), r"Strided: every is 0; .* at least 1"),
    (lambda: Strided(3, -1), r"Strided: offset is -1; .* at least 0"),
    (lambda: Strided(3, 3), r"Strided: offset is 3, but keys repeat every 3; give an offset from 0 to 2"),
    (lambda: Sinks(0), r"Sinks: count is 0; .* at least 1"),
    (lambda: Tokens([]), r"Tokens: positions is \[\]; give a list of at least one"),
    (lambda: Tokens(5), r"Tokens: positions is 5; give a list of at least one"),
    (lambda: Tokens([1, -2]), r"Tokens: a position is -2; .* at least 0"),
    (lambda: Documents([]), r"Documents: lengths is \[\]; give a list of at least one"),
    (lambda: Documents(7), r"Documents: lengths is 7; give a list"),
    (lambda: Documents([3, 0]), r"Documents: a length is 0; .* at least 1"),
    (lambda: Blocks(0, ["1"]), r"Blocks: block is 0; .* at least 1"),
    (lambda: Blocks(2, []), r"Blocks: allowed is \[\]; give a rectangle"),
    (lambda: Blocks(2, 5), r"Blocks: allowed is 5; give a rectangle"),
    (lambda: Blocks(2, ["10", "1"]), r"Blocks: allowed is \['10', '1'\]; give a rectangle .* equal length"),
    (lambda: Blocks(2, ["12"]), r"Blocks: allowed is \['12'\]; give a rectangle"),
    (lambda: Blocks(2, np.ones((2, 2, 2))), r"(?s)Blocks: allowed is .*; give a rectangle"),
    (lambda: RandomBlocks(0, 1, 0), r"RandomBlocks: block is 0; .* at least 1"),
    (lambda: RandomBlocks(1, 0, 0), r"RandomBlocks: count is 0; .* at least 1"),
    (lambda: RandomBlocks(1, 1, -1), r"RandomBlocks: seed is -1; .* at least 0"),
    (lambda: RandomBlocks(1, 1, 0, blocks=0), r"RandomBlocks: blocks is 0; .* at least 1"),
    (lambda: RandomBlocks(1, 1, 0, blocks=2**40), r"RandomBlocks: blocks is 1099511627776; give at most"),
    (lambda: RandomBlocks(1, 1, 0, blocks=4, among=0), r"RandomBlocks: among is 0; .* at least 1"),
    (lambda: RandomBlocks(1, 1, 0, blocks=4, among=5), r"RandomBlocks: among is 5 and blocks is 4; give .* at most"),
    (lambda: RandomBlocks(1, 1, 0, among=5), r"RandomBlocks: among is 5 and blocks is None; give `blocks`"),
    (lambda: BlockWindow(0), r"BlockWindow: block is 0; .* at least 1"),
    (lambda: BlockWindow(4, -1), r"BlockWindow: reach is -1; .* at least 0"),
    (lambda: BlockWindow(4, start=-1), r"BlockWindow: start is -1; .* at least 0"),
    (lambda: GlobalBlocks(0, [1]), r"GlobalBlocks: block is 0; .* at least 1"),
    (lambda: GlobalBlocks(4, []), r"GlobalBlocks: numbers is \[\]; give a list of at least one"),
    (lambda: GlobalBlocks(4, [-1]), r"GlobalBlocks: a number is -1; .* at least 0"),
    (lambda: PerHead([]), r"PerHead: members is \[\]; give a list"),
    (lambda: PerHead(Causal()), r"PerHead: members is Causal\(\); give a list"),
    (lambda: PerHead([Causal()]), r"PerHead: a group is Causal\(\); give \(pattern, number of heads\)"),
    (lambda: PerHead([(Causal(), 1, 2)]), r"PerHead: a group is .*; give \(pattern, number of heads\)"),
    (lambda: PerHead([(3, 1)]), r"PerHead: a group is \(3, 1\); give"),
    (lambda: PerHead([(Causal(), 0)]), r"PerHead: heads is 0; .* at least 1"),
    (lambda: PerHead([(PerHead([(Causal(), 1)]), 1)]), r"PerHead: .* is itself per head; give its groups"),
    (lambda: presets.streaming(0), r"Window: size is 0"),
    (lambda: presets.bigbird_itc(0, 1), r"bigbird_itc: blocks is 0; .* at least 1"),
    (lambda: presets.bigbird_itc(9, 0), r"bigbird_itc: heads is 0; .* at least 1"),
    (lambda: presets.bigbird_itc(9, 1, random=-1), r"bigbird_itc: random is -1; .* at least 0"),
    (lambda: presets.bigbird_itc(9, 1, seed=2**31), r"bigbird_itc: .* seed 2147483648; give below"),
    (lambda: presets.prefix_lm(0, 4), r"Sinks: count is 0; .* at least 1"),
    (lambda: presets.prefix_lm(9, 0), r"Window: size is 0; .* at least 1"),
    (lambda: presets.bigbird_etc(0), r"Sinks: count is 0; .* at least 1"),
    (lambda: Causal().show(0), r"length is 0 .* at least 1"),
    (lambda: Causal().show(8, 0), r"cells is 0; give both at least 1"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:45] for _, message in REFUSED])
def test_a_bad_setting_is_refused(make: Callable[[], Pattern], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_any_integer_will_do() -> None:
    assert Window(np.int64(3)) == Window(3)
    assert type(Window(np.int64(3)).size) is int
    assert Documents(np.array([2, 3])) == Documents([2, 3])
    assert Blocks(2, np.eye(2)) == Blocks(2, [[True, False], [0, 1]]) == Blocks(2, ["10", "01"])


def test_the_longest_settings_work() -> None:
    largest = 2**63 - 1
    whole = Window(largest) | Dilated(largest, largest) | Strided(largest) | Sinks(largest) | Tokens([largest])
    assert whole.density(3) == 1.0
    assert (Dilated(largest, 2) & RandomBlocks(1, 1, 0)).dense_mask(9).sum() < 9
