"""A layer's cache gives what `attend` gives over the whole sequence, and holds what is read again and no more."""

from __future__ import annotations

import pytest
import torch

from gossamer import Causal, Dilated, Packed, Pattern, PerHead, Sinks, Strided, Tokens, Window, attend
from gossamer.nn import layer_cache, survivors
from gossamer.nn.layer_cache import LayerCache, Scores
from gossamer.patterns.base import looks_at_distance_alone
from gossamer.patterns.lifetimes import Lifetimes, lifetimes
from tests.patterns_list import CAUSAL, HEADS, LENGTH

PIECES = {
    "at once": [LENGTH],
    "one by one": [1] * LENGTH,
    "ragged": [50, 1, 1, 1, 30, 1, 1, LENGTH - 85],
    "in chunks": [17] * (LENGTH // 17),
    "nothing first": [0, 40, LENGTH - 40],
}


def sequence(heads: int, key_heads: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    shapes = ((heads, 8), (key_heads, 8), (key_heads, 6))
    return tuple(torch.randn(batch, count, LENGTH, width, dtype=torch.float64) for count, width in shapes)


def through(cache: LayerCache, pieces: list[int], *given: torch.Tensor, scores: Scores | None = None) -> torch.Tensor:
    split = zip(*(x.split(pieces, dim=2) for x in given), strict=True)
    return torch.cat([cache.attend(*piece, scores) for piece in split], dim=2)


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("name", CAUSAL)
def test_pieces_equal_the_whole(name: str, pieces: list[int]) -> None:
    heads = HEADS[name]
    for key_heads in {heads, 1, heads // 2 if heads % 2 == 0 else heads}:
        given = sequence(heads, key_heads)
        out = through(LayerCache(CAUSAL[name]), pieces, *given)
        torch.testing.assert_close(out, attend(*given, CAUSAL[name]))


@pytest.mark.parametrize(
    "pieces", [[9, 40, *[1] * 60, 27], [1] * LENGTH, [3, LENGTH - 3]], ids=["mixed", "ones", "two"]
)
@pytest.mark.parametrize("name", CAUSAL)
def test_padded_sequences_equal_those_without_padding(name: str, pieces: list[int]) -> None:
    """The padding is NaN: nobody may look at it."""
    padding, heads = [5, 0, 12], HEADS[name]
    given = sequence(heads, heads, batch=3)
    for x in given:
        for row, some in enumerate(padding):
            x[row, :, :some] = torch.nan
    out = through(LayerCache(CAUSAL[name], padding=padding), pieces, *given)
    for row, some in enumerate(padding):
        alone = attend(*(x[row : row + 1, :, some:] for x in given), CAUSAL[name])
        torch.testing.assert_close(out[row : row + 1, :, some:], alone)
        assert not out[row, :, :some].any()


def test_settings_of_the_scores_reach_attention() -> None:
    pattern, sinks = Causal() & (Window(9) | Sinks(2)), torch.randn(4, dtype=torch.float64)
    given = sequence(4, 2)
    scores = Scores(scale=0.3, softcap=2.0, sinks=sinks)
    out = through(LayerCache(pattern), [60, *[1] * (LENGTH - 60)], *given, scores=scores)
    torch.testing.assert_close(out, attend(*given, pattern, scale=0.3, softcap=2.0, sinks=sinks))


SPLIT = PerHead([(Window(9), 2), (Strided(4), 2), (Window(30) | Tokens([3, 50]), 2)]) & Causal()


def test_heads_of_several_runs_have_their_own_sinks() -> None:
    given, scores = sequence(6, 3), Scores(sinks=torch.randn(6, dtype=torch.float64))
    out = through(LayerCache(SPLIT), [60, *[1] * (LENGTH - 60)], *given, scores=scores)
    torch.testing.assert_close(out, attend(*given, SPLIT, sinks=scores.sinks))


@pytest.mark.parametrize("pieces", [[LENGTH], [1] * LENGTH, [50, 1, 1, LENGTH - 52]], ids=["at once", "ones", "ragged"])
@pytest.mark.parametrize("name", CAUSAL)
def test_what_is_held_is_what_will_be_read(name: str, pieces: list[int]) -> None:
    """Every key that a later query reads, and beside those only keys of a ring shorter than any lifetime that ends."""
    heads = HEADS[name]
    cache = LayerCache(CAUSAL[name])
    through(cache, pieces, *sequence(heads, heads))
    for run in cache.runs:
        last = lifetimes(run.store.pattern, 0, LENGTH).last
        read = (last >= 0) & (torch.arange(LENGTH).numpy() + last >= LENGTH)
        assert run.store.filled.max() <= read.sum() + 1
        assert run.store.filled.min() >= read.sum()


@pytest.mark.parametrize(
    ("pattern", "held"),
    [
        (Causal() & Window(100), 100),
        (Causal() & (Window(100) | Sinks(4)), 104),
        (Causal() & (Window(100) | Tokens([0, 7, 1000, 4000])), 104),
        (Causal() & Strided(50), 120),
        (Causal(), 6000),
    ],
    ids=str,
)
def test_memory_is_flat_where_the_pattern_is_bounded(pattern: Pattern, held: int) -> None:
    cache, x = LayerCache(pattern), torch.zeros(1, 1, 6000, 1)
    sizes = []
    for piece in x.split([2000, 2000, *[1] * 2000], dim=2):
        cache.attend(piece, piece, piece)
        sizes.append(cache.nbytes)
    assert cache.held == held
    if held < 110:
        assert len(set(sizes[-1000:])) == 1, "memory grows"
        assert sizes[-1] <= 2 * 4 * (held + 16)


def test_a_ring_that_wraps_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: lifetimes one query too short."""
    monkeypatch.setattr(survivors, "lifetimes", lambda *given: _shorter(lifetimes(*given)))
    for kept in (survivors.survivors, survivors.ring_of):
        kept.cache_clear()
    given = sequence(2, 2)
    out = through(LayerCache(Causal() & Window(20)), [1] * LENGTH, *given)
    for kept in (survivors.survivors, survivors.ring_of):
        kept.cache_clear()
    assert not torch.allclose(out, attend(*given, Causal() & Window(20)))


def _shorter(found: Lifetimes) -> Lifetimes:
    return Lifetimes(found.last - 1, found.steady)


@pytest.mark.parametrize("padding", [None, [3, 0, 0, 7]], ids=["whole", "padded"])
def test_sequences_picked_go_on_as_if_they_had_always_been_there(padding: list[int] | None) -> None:
    pattern, order = Causal() & (Window(9) | Strided(7)), torch.tensor([2, 2, 0, 3, 1])
    given = sequence(2, 2, batch=4)
    cache = LayerCache(pattern, padding=padding)
    through(cache, [40, *[1] * 20], *(x[:, :, :60] for x in given))
    cache.pick(order)
    chosen = [x[order] for x in given]
    out = through(cache, [1] * (LENGTH - 60), *(x[:, :, 60:] for x in chosen))
    for row, number in enumerate(order.tolist()):
        some = padding[number] if padding else 0
        alone = attend(*(x[row : row + 1, :, some:] for x in chosen), pattern)
        torch.testing.assert_close(out[row : row + 1], alone[:, :, 60 - some :])


def test_no_gradient_reaches_what_is_held() -> None:
    x = torch.randn(1, 2, 20, 8, requires_grad=True)
    cache = LayerCache(Causal() & Window(8))
    through(cache, [10, *[1] * 10], x, x, x)
    assert all(not held.requires_grad for run in cache.runs for held in (run.store.keys, run.store.values))


@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        ((1, 3, 2, 4), (1, 3, 1, 4), "as many queries as keys"),
        ((1, 3, 1, 4), (1, 2, 1, 4), "must divide"),
        ((1, 6, 1, 4), (1, 3, 1, 4), r"q has shape \[1, 6, 1, 4\], but the cache is of \[1, 3, tokens, width\]"),
        ((1, 3, 1, 5), (1, 3, 1, 4), r"q \(1, 3, 1, 5\), k \(1, 3, 1, 4\) .* do not fit"),
        ((2, 3, 1, 4), (2, 3, 1, 4), r"q has shape .* cache is of \[1, 3, tokens, width\]"),
        ((1, 3, 1, 5), (1, 3, 1, 5), r"k is torch.float32 of width 5, but the cache holds torch.float32 of width 4"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(q: tuple[int, ...], k: tuple[int, ...], message: str) -> None:
    cache = LayerCache(Causal() & Window(4))
    if "divide" not in message:
        first = torch.zeros(1, 3, 5, 4)
        cache.attend(first, first, first)
    seen, positions = cache.seen, [run.store.next.tolist() for run in cache.runs]
    with pytest.raises(ValueError, match=message):
        cache.attend(torch.zeros(q), torch.zeros(k), torch.zeros(k))
    assert (seen, positions) == (cache.seen, [run.store.next.tolist() for run in cache.runs]), "nothing was taken"


def test_another_dtype_is_refused() -> None:
    cache, x = LayerCache(Causal() & Window(4)), torch.zeros(1, 3, 5, 4)
    cache.attend(x, x, x)
    with pytest.raises(ValueError, match=r"k is torch\.float64 of width 4, but the cache holds torch\.float32"):
        cache.attend(x.double(), x.double(), x.double())


def test_padding_that_goes_on_in_the_next_chunk_is_known_then() -> None:
    pattern, padding = Causal() & (Window(9) | Sinks(2)), [30, 3]
    given, cache = sequence(2, 2), LayerCache(pattern)
    out = []
    for first in range(0, LENGTH, 17):
        end = min(first + 17, LENGTH)
        cache.pad([min(some, end) for some in padding])
        out.append(cache.attend(*(x[:, :, first:end] for x in given)))
    for row, some in enumerate(padding):
        alone = attend(*(x[row : row + 1, :, some:] for x in given), pattern)
        torch.testing.assert_close(torch.cat(out, dim=2)[row : row + 1, :, some:], alone)
    with pytest.raises(ValueError, match=r"padding is \[31, 3\], and was \[30, 3\]"):
        cache.pad([31, 3])


def test_padding_of_another_batch_is_refused() -> None:
    x = torch.zeros(3, 2, 5, 4)
    with pytest.raises(ValueError, match="padding is of 2 sequences, but q has 3"):
        LayerCache(Causal(), padding=[1, 0]).attend(x, x, x)


def test_a_pattern_that_begins_anew_is_asked_where_its_keys_stood() -> None:
    """Sets of distances within something that counts from its own start are not the same everywhere."""
    pattern = Packed(Causal() & Window(9), [20, 5, 3, 108])
    assert not looks_at_distance_alone(pattern)
    assert looks_at_distance_alone(Causal() & (Window(9) | ~Dilated(3, 4).T))
    given = sequence(2, 2)
    torch.testing.assert_close(through(LayerCache(pattern), [13] * 10 + [6], *given), attend(*given, pattern))


@pytest.mark.parametrize("first", [True, False], ids=["inference first", "inference after"])
def test_a_cache_goes_on_in_another_mode(first: bool) -> None:
    given, cache, out = sequence(2, 2), LayerCache(Causal() & (Window(9) | Sinks(2))), []
    for number, piece in enumerate(zip(*(x.split([60, 1, 1, 40, 34], dim=2) for x in given), strict=True)):
        with torch.inference_mode(first == (number < 2)):
            out.append(cache.attend(*piece).clone())
    torch.testing.assert_close(torch.cat([x.clone() for x in out], dim=2), attend(*given, cache.pattern))


def test_a_call_that_broke_off_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, x = LayerCache(SPLIT), torch.randn(1, 6, 30, 4)
    cache.attend(x, x, x)
    with monkeypatch.context() as patched:
        patched.setattr(layer_cache, "attend", lambda *given, **settings: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache.attend(x, x, x)
    with pytest.raises(RuntimeError, match=r"broke off within attention.* begin with a new cache"):
        cache.attend(x, x, x)


def test_padded_tokens_have_the_dtype_that_autocast_decides() -> None:
    x = torch.randn(2, 2, 12, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = LayerCache(Causal() & Window(4), padding=[3, 0]).attend(x, x, x)
    assert out.dtype == torch.bfloat16
    assert not out[0, :, :3].any() and out[0, :, 3:].abs().amin() > 0


def test_sinks_of_other_heads_are_refused_before_anything_is_held() -> None:
    cache, x = LayerCache(Causal() & Window(4)), torch.zeros(1, 3, 5, 4)
    with pytest.raises(ValueError, match=r"sinks has shape \(2,\); give one for each of 3 heads"):
        cache.attend(x, x, x, Scores(sinks=torch.zeros(2)))
    assert cache.seen == 0 and not cache.runs


def test_the_memory_of_a_ring_is_taken_as_it_fills() -> None:
    cache, x = LayerCache(Causal() & (Window(10_000) | Sinks(2))), torch.zeros(1, 1, 10_500, 1)
    for piece in x.split([5, *[1] * 95, 10_400], dim=2):
        cache.attend(piece, piece, piece)
        assert cache.nbytes <= 2 * 4 * min(2 * cache.seen, 10_002 + 16)
    assert cache.held == 10_002


def test_padding_follows_the_sequences_that_are_picked() -> None:
    cache, x = LayerCache(Causal() & Window(8), padding=[3, 0]), torch.zeros(2, 2, 5, 4)
    cache.attend(x, x, x)
    cache.pick(torch.tensor([1, 1, 0]))
    cache.pad([0, 0, 3])
    assert cache.padding == (0, 0, 3)


def test_a_step_is_not_repeated_by_a_sequence_that_comes_to_a_hole_which_another_has_behind_it() -> None:
    """Token 300 is read by nobody, not by itself: the first sequence comes to it when the second is at 5300."""
    pattern, most = Causal() & Window(8) & ~Tokens([300]), 5400
    cache, x = LayerCache(pattern, padding=[5000, 0]), torch.zeros(2, 1, most, 1)
    cache.attend(x[:, :, :5250], x[:, :, :5250], x[:, :, :5250])
    for _ in range(5250, 5300):
        cache.repeats()
        cache.attend(x[:, :, :1], x[:, :, :1], x[:, :, :1])
    assert cache.runs[0].store.next.tolist() == [300, 5300]
    assert not cache.repeats()


def test_sequences_picked_in_inference_mode_go_on_outside() -> None:
    given, cache = sequence(2, 2), LayerCache(Causal() & Window(9))
    with torch.inference_mode():
        through(cache, [60], *(x[:, :, :60] for x in given))
        cache.pick(torch.tensor([0, 1]))
    out = through(cache, [1] * (LENGTH - 60), *(x[:, :, 60:] for x in given))
    torch.testing.assert_close(out, attend(*given, cache.pattern)[:, :, 60:])
