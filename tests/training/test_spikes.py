"""`training.skip_above`: a step whose gradient is far above those before it is skipped, and its windows are named."""

import functools

import pytest

from dla_train.runs.metrics_file import read_rows
from dla_train.training import spikes
from dla_train.training.config import TrainingConfig
from dla_train.training.spikes import FIRST_STEPS, SpikeWatch
from tests.training.exact_rows import exact_rows

SETTINGS = ["training.threads=1", "training.validate_every=null", "checkpoint.every=1", "checkpoint.keep_last=100"]


def test_only_norms_far_above_the_mean_are_spikes_once_there_is_one():
    watch = SpikeWatch(3.0)
    for _ in range(FIRST_STEPS):
        assert not watch.is_spike(1e9)
        watch.take_in(2.0)
    assert watch.mean == pytest.approx(2.0), "no matter how many there are"
    assert not watch.is_spike(5.9)
    assert watch.is_spike(6.1)
    assert not SpikeWatch(None).is_spike(1e9)
    for _ in range(3 * FIRST_STEPS):
        watch.take_in(8.0)
    assert watch.mean == pytest.approx(8.0, rel=0.05), "it follows"
    again = SpikeWatch(3.0)
    again.restore(watch.state())
    assert again.mean == watch.mean
    assert again.is_spike(25.0)


@pytest.fixture
def spoil(monkeypatch, multiply_loss):
    """Multiply the loss of the given steps by 1,000; each step has two micro-batches. Four steps make a mean here."""
    monkeypatch.setattr(spikes, "FIRST_STEPS", 4)
    return functools.partial(multiply_loss, 1e3)


def test_a_spike_is_skipped_and_a_resumed_run_knows_what_one_is(cli, micro_recipe, spoil, tmp_path):
    arguments = ["fit", "--recipe", micro_recipe, *SETTINGS, "training.skip_above=10", "training.steps=8"]
    spoil(2, 6)
    straight = cli(*arguments, "--run-dir", "straight")
    assert straight.code == 0, straight.err
    rows = [row for row in read_rows(tmp_path / "straight/metrics.csv") if row["split"] == "train"]
    assert [row["skipped"] for row in rows] == [0, 0, 0, 0, 0, 0, 0, 0], "step 2 was early, and made the mean large"

    spoil(6)
    straight = cli(*arguments, "--run-dir", "again")
    assert straight.code == 0, straight.err
    assert "step 6 is skipped: its gradient is " in straight.err
    assert " times its mean; its windows have the global indices 20 to 23 (1 in a row, of at most 3)" in straight.err
    rows = [row for row in read_rows(tmp_path / "again/metrics.csv") if row["split"] == "train"]
    assert [row["skipped"] for row in rows] == [0] * 5 + [1] * 3
    assert rows[5]["grad_norm"] > 100 * rows[4]["grad_norm"]

    resumed = ["--run-dir", "stopped", "--resume", "auto"]
    for step in range(1, 6):
        spoil(6, first=step)
        assert cli(*arguments, *resumed, "training.max_minutes=1e-9").code == 0
    spoil(6, first=read_rows(tmp_path / "stopped/metrics.csv")[-1]["step"] + 1)
    assert cli(*arguments, *resumed).code == 0
    train = [row for row in exact_rows(tmp_path / "stopped") if row["split"] == "train"]
    assert train == [row for row in exact_rows(tmp_path / "again") if row["split"] == "train"]


def test_too_many_in_a_row_end_the_run(cli, micro_recipe, spoil):
    spoil(*range(6, 21))
    done = cli("fit", "--recipe", micro_recipe, *SETTINGS, "training.skip_above=10", "training.max_nonfinite=1")
    assert done.code == 1
    assert "the gradient of step 7 is " in done.err
    assert " times its mean, 2 in a row: training diverged; its windows have the global indices 24 to 27" in done.err
    assert "raise training.skip_above (10.0) or lower" in done.err


def test_a_factor_that_would_skip_half_of_the_steps_is_refused():
    with pytest.raises(ValueError, match=r"skip_above is 1; it must be above 1, a multiple of the mean, or null"):
        TrainingConfig(steps=1, global_batch=1, micro_batch=1, skip_above=1)
