"""The learning rate at the places where it is known in closed form."""

import pytest

from gossamer.training.config import Phase
from gossamer.training.schedule import learning_rate

PHASE = Phase(
    steps=110, windows=(), stage=None, context_size=8, learning_rate=2.0, batch_size=1, gradient_accumulation=1,
    warmup_steps=10, final_share=0.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (1, 0.2),  # a tenth of the way up
        (10, 2.0),  # the top
        (60, 1.1),  # half-way down: the mean of the top and the end
        (110, 0.2),  # the end
    ],
)
def test_the_rate_where_it_is_known(step: int, rate: float) -> None:
    assert learning_rate(step, PHASE) == pytest.approx(rate)


def test_without_warmup_it_only_falls() -> None:
    rates = [learning_rate(step, PHASE._replace(steps=5, warmup_steps=0)) for step in range(1, 6)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.2)


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    rates = [learning_rate(step, PHASE._replace(steps=3)) for step in range(1, 4)]
    assert rates == pytest.approx([0.2, 0.4, 0.6])


def test_a_final_share_of_one_stays_at_the_top() -> None:
    constant = PHASE._replace(final_share=1.0)
    assert [learning_rate(step, constant) for step in (5, 10, 60, 110)] == pytest.approx([1.0, 2.0, 2.0, 2.0])
