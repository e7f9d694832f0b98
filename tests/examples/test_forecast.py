"""The forecaster learns, and no forecast looks ahead."""

from __future__ import annotations

from types import ModuleType

import torch


def test_what_is_trained_errs_less(script: ModuleType) -> None:
    small = {"context": 192, "horizon": 6, "width": 16, "batch": 4}
    (untrained, naive), (trained, same) = (script.main(script.Forecast(steps=steps, **small)) for steps in (1, 60))
    assert trained < 0.9 * untrained
    assert 0 < naive < 2 and 0 < same < 2


def test_later_hours_do_not_change_earlier_forecasts(script: ModuleType) -> None:
    torch.manual_seed(0)
    model, values = script.Forecaster(16), script.series(2, 150)
    other = torch.cat([values[:, :100], script.series(2, 50)], dim=1)
    before, after = model(values), model(other)
    torch.testing.assert_close(after[:, :100], before[:, :100])
    assert (after[:, 100:] - before[:, 100:]).abs().min() > 1e-3
