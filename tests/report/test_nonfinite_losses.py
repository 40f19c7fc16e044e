"""A step whose loss is no number spoils nothing in the report of the run that survived it."""

import json
import math

import pytest
from matplotlib.axes import Axes

from dla_train.report.facts import gather
from dla_train.report.finite import finite
from dla_train.report.loss_picture import draw_losses


def rows(losses):
    return [
        {"step": step, "split": "train", "loss": loss, "tokens": step, "seconds": 1.0, "tokens_per_second": 5.0}
        | {"skipped": sum(not math.isfinite(value) for value in losses[:step])}
        for step, loss in enumerate(losses, 1)
    ]


@pytest.mark.parametrize(
    ("losses", "mean", "steps", "skipped"),
    [
        ([3.0, math.nan, 1.0, math.inf], 2.0, 2, 2),
        ([math.nan] * 10 + [2.0] * 50, 2.0, 50, 10),
        ([math.nan] * 3, None, 0, 3),
    ],
)
def test_the_training_loss_is_the_mean_of_numbers(losses, mean, steps, skipped):
    facts = gather(rows(losses), planned_steps=len(losses), parameters=1, bigram_loss=None)
    assert (facts.training_loss, facts.training_loss_steps, facts.skipped_steps) == (mean, steps, skipped)


def test_rows_of_a_version_that_skipped_no_step():
    old = [{name: value for name, value in row.items() if name != "skipped"} for row in rows([2.0, 1.0])]
    assert gather(old, planned_steps=2, parameters=1, bigram_loss=None).skipped_steps == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_curve_has_a_gap_and_the_smoothed_one_goes_on(tmp_path, monkeypatch, bad):
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *data, **how: drawn.append(data) or plot(self, *data, **how))
    train = [(step, bad if step == 6 else 3.0 if step < 6 else 2.0) for step in range(1, 12)]
    draw_losses(tmp_path / "loss.png", "run", train, [], None)
    (steps, losses), (smooth_steps, smooth) = drawn
    assert list(zip(steps, losses, strict=True)) == train
    assert smooth_steps == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert smooth == pytest.approx([3.0] * 5 + [2.0] * 5)
    draw_losses(tmp_path / "none.png", "run", [(1, bad)], [], None)
    assert (tmp_path / "none.png").stat().st_size > 0


def test_json_has_null_for_what_is_no_number():
    written = json.dumps(finite({"loss": math.inf, "rates": {0: math.nan, 1: 0.5}, "steps": 3}), allow_nan=False)
    assert json.loads(written) == {"loss": None, "rates": {"0": None, "1": 0.5}, "steps": 3}
