"""The forecaster learns, and no forecast looks ahead."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch


def test_the_loss_falls(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    ours, naive = script.main(script.Forecast(101, context=192, horizon=4, width=16, batch=4))
    first, last = (float(line.split("loss ")[1]) for line in capsys.readouterr().out.splitlines() if "loss" in line)
    assert last < 0.5 * first
    assert 0 < ours < 2 and 0 < naive < 2


def test_later_hours_do_not_change_earlier_forecasts(script: ModuleType) -> None:
    torch.manual_seed(0)
    model, values = script.Forecaster(16), script.series(2, 150)
    other = torch.cat([values[:, :100], script.series(2, 50)], dim=1)
    before, after = model(values), model(other)
    torch.testing.assert_close(after[:, :100], before[:, :100])
    assert (after[:, 100:] - before[:, 100:]).abs().mean() > 1e-2
