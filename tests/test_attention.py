"""`attend` on every pattern: exact support, the oracle, no leak, any length, any stride, and the same bits again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gossamer import attend
from gossamer.patterns import (
    Blocks,
    Causal,
    Dilated,
    Documents,
    Pattern,
    PerHead,
    RandomBlocks,
    Sinks,
    Strided,
    Tokens,
    Window,
)
from tests.checks import (
    Setting,
    check_dropout,
    check_empty_rows,
    check_equals_oracle,
    check_error,
    check_error_beside_sdpa,
    check_no_leak,
    check_pieces,
    check_repeatable,
    check_support,
    check_views,
    draw,
)
from tests.patterns_list import CAUSAL, HEADS, LENGTH, PATTERNS

every_pattern = pytest.mark.parametrize("name", PATTERNS)
every_causal_pattern = pytest.mark.parametrize("name", CAUSAL)
float32_and_less = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)

LENGTHS = [0, 1, 2, 3, 17, 63, 64, 65, 97, 113, 127, 128, 129, 255, 256, 257]
UNEVEN = [(1, LENGTH), (5, LENGTH), (129, 200), (200, 129), (LENGTH, 1), (0, 7), (7, 0)]
WITH_EMPTY_ROWS = ["small blocks", "random blocks", "documents", "nothing", "the future", "rows"]


def key_heads(heads: int) -> list[int]:
    return [groups for groups in range(1, heads + 1) if heads % groups == 0]


def setting(name: str, **changes: object) -> Setting:
    return Setting(heads=HEADS[name], **changes)


@every_pattern
@float32_and_less
def test_exactly_the_visible_pairs_are_seen(name: str, dtype: torch.dtype) -> None:
    for groups in key_heads(HEADS[name]):
        check_support(PATTERNS[name], setting(name, key_heads=groups, dtype=dtype))


@every_pattern
@pytest.mark.parametrize("sizes", [(50, LENGTH), (LENGTH, 50)], ids=str)
def test_exactly_the_visible_pairs_are_seen_at_uneven_lengths(name: str, sizes: tuple[int, int]) -> None:
    check_support(PATTERNS[name], setting(name, queries=sizes[0], keys=sizes[1], dtype=torch.float32))


@every_pattern
def test_it_is_the_oracle_with_every_option(name: str) -> None:
    """Outputs, log-sum-exp and the gradients of q, k, v and the sinks, also through the log-sum-exp."""
    for groups in key_heads(HEADS[name]):
        plain = setting(name, key_heads=groups, batch=2)
        check_equals_oracle(draw(PATTERNS[name], plain))
        check_equals_oracle(draw(PATTERNS[name], replace(plain, sinks=True, softcap=1.5, scale=0.7, value_width=5)))


@every_pattern
@float32_and_less
def test_the_error_is_that_of_plain_attention(name: str, dtype: torch.dtype) -> None:
    problem = draw(PATTERNS[name], setting(name, batch=3, dtype=dtype))
    check_error(problem)
    check_error_beside_sdpa(problem)
    check_error(draw(PATTERNS[name], setting(name, batch=3, dtype=dtype, sinks=True, softcap=2.0)))


@every_pattern
def test_any_length(name: str) -> None:
    for length in LENGTHS:
        check_equals_oracle(draw(PATTERNS[name], setting(name, queries=length, width=8)))


@every_pattern
@pytest.mark.parametrize("sizes", UNEVEN, ids=str)
def test_any_two_lengths(name: str, sizes: tuple[int, int]) -> None:
    check_equals_oracle(draw(PATTERNS[name], setting(name, queries=sizes[0], keys=sizes[1], sinks=True)))


LONG: list[Pattern] = [
    Causal(),
    Causal() | Causal().T,
    Causal() & (Window(100) | Strided(7) | Sinks(3)),
    RandomBlocks(64, 3, 0) | Tokens([5, 800]).T,
    Blocks(100, ["1" * 11] * 11),
]


@pytest.mark.parametrize("pattern", LONG, ids=str)
@pytest.mark.parametrize("length", [1023, 1024, 1025])
def test_a_row_of_many_tiles(pattern: Pattern, length: int) -> None:
    check_equals_oracle(draw(pattern, Setting(heads=1, queries=length, width=8)))


@pytest.mark.slow
@every_pattern
def test_thousands_of_tokens(name: str) -> None:
    for sizes in ((4096, 4096), (7, 4224)):
        one = PATTERNS[name].for_head(0)
        check_equals_oracle(draw(one, Setting(heads=1, queries=sizes[0], keys=sizes[1], width=8)))


@pytest.mark.parametrize("width", [1, 3, 16, 32, 40, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_any_width(width: int, dtype: torch.dtype) -> None:
    for pattern in (Causal() & (Window(9) | Strided(6)), RandomBlocks(16, 1, 0) | Window(2)):
        for value_width in (width, 24):
            shape = Setting(queries=70, width=width, value_width=value_width, dtype=dtype, key_heads=1)
            check = check_equals_oracle if dtype == torch.float64 else check_error
            check(draw(pattern, shape))


@every_causal_pattern
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_future_does_not_leak(name: str, dtype: torch.dtype) -> None:
    check_no_leak(CAUSAL[name], setting(name, dtype=dtype), times=(0, 1, 62, 63, 64, 100, LENGTH - 1))


@every_causal_pattern
@pytest.mark.parametrize("pieces", [[1] * 30, [17, 1, 12], [3, 3, 20, 4]], ids=str)
def test_pieces_see_what_the_whole_sees(name: str, pieces: list[int]) -> None:
    check_pieces(CAUSAL[name], setting(name, queries=30), pieces)


@every_causal_pattern
def test_ragged_pieces_of_a_longer_sequence(name: str) -> None:
    check_pieces(CAUSAL[name], setting(name, batch=2), [70, 1, 0, 64, 1])


@pytest.mark.parametrize("name", WITH_EMPTY_ROWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_query_that_sees_nothing_gives_nothing(name: str, dtype: torch.dtype) -> None:
    check_empty_rows(PATTERNS[name], setting(name, dtype=dtype))


@pytest.mark.parametrize("name", ["causal", "causal window", "uneven heads", "bigbird"])
def test_queries_before_the_first_key_see_nothing(name: str) -> None:
    check_empty_rows(PATTERNS[name], setting(name, queries=LENGTH, keys=70))


def test_any_gradient_of_an_empty_row_s_log_sum_exp_is_dropped() -> None:
    """Merging partial results by their log-sum-exp makes such gradients."""
    q = torch.randn(1, 1, 5, 4, requires_grad=True)
    _, lse = attend(q, q, q, ~Causal(), return_lse=True)
    (gradient,) = torch.autograd.grad(lse, q, torch.full_like(lse, 3.0))
    assert gradient.isfinite().all() and (gradient[0, 0, 0] != 0).any()


def test_a_sink_of_minus_infinity_is_no_sink() -> None:
    q, k, v = (torch.randn(1, 2, 9, 4).double() for _ in range(3))
    sinks = torch.full((2,), -torch.inf).double().requires_grad_()
    out = attend(q, k, v, ~Causal(), sinks=sinks)
    torch.testing.assert_close(out, attend(q, k, v, ~Causal()))
    assert torch.autograd.grad(out.sum(), sinks)[0].tolist() == [0.0, 0.0]


@every_pattern
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_call_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    check_repeatable(draw(PATTERNS[name], setting(name, dtype=dtype, key_heads=1, sinks=True)))


@every_pattern
def test_any_strides(name: str) -> None:
    check_views(PATTERNS[name], setting(name, batch=2, key_heads=1))


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that torch hands out is full of NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@every_pattern
def test_memory_that_nobody_wrote_is_not_read(name: str, poisoned_memory: None) -> None:
    check_equals_oracle(draw(PATTERNS[name], setting(name, key_heads=1, sinks=True)))
    check_equals_oracle(draw(PATTERNS[name], setting(name, queries=70, keys=33, batch=2)))
    check_error(draw(PATTERNS[name], setting(name, batch=3, dtype=torch.bfloat16)))


@every_pattern
def test_dropout_drops_the_same_pairs_in_both_directions(name: str) -> None:
    for groups in key_heads(HEADS[name]):
        check_dropout(draw(PATTERNS[name], setting(name, key_heads=groups, batch=2)), 0.3, seed=2**61 + 5)
    uneven = setting(name, queries=90, keys=40, sinks=True, softcap=2.0)
    check_dropout(draw(PATTERNS[name], uneven), 0.9, seed=0)


@pytest.mark.parametrize("name", ["causal", "causal window", "local and global", "bigbird", "longformer", "packed"])
@float32_and_less
@pytest.mark.parametrize("magnitude", [100.0, 0.001, 0.0])
def test_inputs_of_any_size(name: str, dtype: torch.dtype, magnitude: float) -> None:
    check_error(draw(PATTERNS[name], setting(name, batch=3, dtype=dtype, magnitude=magnitude)))


@float32_and_less
def test_large_scores(dtype: torch.dtype) -> None:
    """Scores of several hundred, with a few rows where one key takes all."""
    for name in ("causal", "streaming", "bigbird"):
        problem = draw(PATTERNS[name], setting(name, batch=3, dtype=dtype, magnitude=3.0))
        check_error(replace(problem, q=problem.q * 5 / 3))


@pytest.mark.parametrize("pattern", [
    Causal() & Window(500), Causal() & (Window(LENGTH) | RandomBlocks(16, 2, 0)), Causal() & Strided(1),
    Causal() & Sinks(LENGTH), Causal() & Tokens(range(LENGTH)), Causal() & Documents([500]),
    Causal() & Blocks(16, ["1" * 9] * 9), PerHead([(Causal(), 1), (~~Causal(), 1)]),
], ids=lambda pattern: str(pattern)[:40])  # fmt: skip
def test_a_pattern_without_a_limit_is_dense_attention(pattern: Pattern) -> None:
    problem = draw(pattern, Setting())
    right = F.scaled_dot_product_attention(problem.q, problem.k, problem.v, is_causal=True)
    torch.testing.assert_close(attend(problem.q, problem.k, problem.v, pattern), right, rtol=1e-12, atol=1e-12)


def test_packed_documents_are_separate_documents() -> None:
    lengths = [1, 30, 64, 5, 36]
    own = Window(9) | Dilated(6, step=5)
    packed = draw(Causal() & own & Documents(lengths), Setting(queries=sum(lengths), key_heads=1))
    together = attend(packed.q, packed.k, packed.v, packed.pattern)
    parts = [x.split(lengths, dim=2) for x in (packed.q, packed.k, packed.v)]
    alone = torch.cat([attend(q, k, v, Causal() & own) for q, k, v in zip(*parts, strict=True)], dim=2)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["causal window", "packed dilated", "longformer", "bigbird", "uneven heads", "tangled"]
)
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5, "sinks": True, "scale": 0.9}], ids=["plain", "options"])
def test_gradients_are_derivatives(name: str, options: dict) -> None:
    """Against finite differences in float64, through output and log-sum-exp, in random directions."""
    problem = draw(PATTERNS[name], setting(name, queries=40, keys=50, width=4, key_heads=1, **options))
    leaves = [x.detach().requires_grad_() for x in problem.inputs.values()]

    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *sinks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, lse = attend(
            q, k, v, problem.pattern,
            sinks=sinks[0] if sinks else None, softcap=problem.softcap, scale=problem.scale, return_lse=True,
        )  # fmt: skip
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(both, leaves, fast_mode=True)


def test_gradients_are_derivatives_entry_by_entry() -> None:
    leaves = [torch.randn(1, 2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 6, 6)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, Causal() & Window(3)), leaves)
