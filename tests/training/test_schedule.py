"""The learning rate at the places where it is known in closed form."""

import pytest

from gossamer.training.config import OptimizerConfig, ScheduleConfig
from gossamer.training.schedule import learning_rate

OPTIMIZER = OptimizerConfig(learning_rate=2.0)
SCHEDULE = ScheduleConfig(warmup_steps=10, final_share=0.1)


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
    assert learning_rate(step, 110, OPTIMIZER, SCHEDULE) == pytest.approx(rate)


def test_without_warmup_it_only_falls() -> None:
    rates = [learning_rate(step, 5, OPTIMIZER, ScheduleConfig(warmup_steps=0)) for step in range(1, 6)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.2)


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    rates = [learning_rate(step, 3, OPTIMIZER, SCHEDULE) for step in range(1, 4)]
    assert rates == pytest.approx([0.2, 0.4, 0.6])
