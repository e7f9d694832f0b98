"""Random pattern expressions for hypothesis, which shrinks a failing one to its core."""

from hypothesis import strategies as st

from gossamer.patterns import (
    Blocks,
    BlockWindow,
    Causal,
    Dilated,
    Documents,
    GlobalBlocks,
    Pattern,
    RandomBlocks,
    Sinks,
    Strided,
    Tokens,
    Window,
)


@st.composite
def _strided(draw: st.DrawFn) -> Pattern:
    every = draw(st.integers(1, 9))
    return Strided(every, draw(st.integers(0, every - 1)))


@st.composite
def _blocks(draw: st.DrawFn) -> Pattern:
    columns = draw(st.integers(1, 5))
    row = st.text("01", min_size=columns, max_size=columns)
    return Blocks(draw(st.integers(1, 20)), draw(st.lists(row, min_size=1, max_size=5)))


@st.composite
def _random_blocks(draw: st.DrawFn) -> Pattern:
    blocks = draw(st.integers(1, 15))
    among = draw(st.one_of(st.none(), st.integers(1, blocks)))
    return RandomBlocks(draw(st.integers(1, 9)), draw(st.integers(1, 3)), draw(st.integers(0, 9)), blocks, among)


LEAVES: st.SearchStrategy[Pattern] = st.one_of(
    st.just(Causal()),
    st.builds(Window, st.integers(1, 40)),
    st.builds(Dilated, st.integers(1, 9), st.integers(1, 5)),
    _strided(),
    st.builds(Sinks, st.integers(1, 9)),
    st.builds(Tokens, st.lists(st.integers(0, 70), min_size=1, max_size=4)),
    _blocks(),
    st.builds(RandomBlocks, st.integers(1, 9), st.integers(1, 3), st.integers(0, 9)),
    _random_blocks(),
    st.builds(BlockWindow, st.integers(1, 9), st.integers(0, 3), st.integers(0, 9)),
    st.builds(GlobalBlocks, st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
    st.builds(Documents, st.lists(st.integers(1, 25), min_size=1, max_size=5)),
)

EXPRESSIONS: st.SearchStrategy[Pattern] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
        st.builds(lambda a: a.T, inner),
    ),
    max_leaves=6,
)

LENGTHS = st.one_of(st.integers(0, 90), st.sampled_from([63, 64, 65, 127, 128, 129]))
