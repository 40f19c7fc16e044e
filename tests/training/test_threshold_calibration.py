"""`memory.calibrate_rate` in a run: the rate is met, the thresholds are saved, and a resume changes nothing."""

import shutil

import pytest
import torch

from dla_train.runs.metrics_file import read_rows
from dla_train.training.module import LanguageModelTraining
from tests.training.exact_rows import exact_rows


def thresholds(path):
    state = torch.load(path / "state.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.endswith("memory.threshold")}


@pytest.mark.parametrize("steps", [1, 6])
def test_a_calibrated_run_meets_the_rate_and_goes_on_as_if_nothing_had_happened(cli, micro_recipe, tmp_path, steps):
    arguments = [
        "fit", "--recipe", micro_recipe, "training.threads=1", "model.mixer.memory.calibrate_rate=0.3",
        f"model.mixer.memory.calibrate_steps={steps}", "logging.memory_every=1", "training.validate_every=null",
        "training.steps=8",
    ]  # fmt: skip
    straight = cli(*arguments, "--run-dir", "straight")
    assert straight.code == 0, straight.err
    assert straight.err.count("Thresholds for a boundary rate of 0.3, layer by layer") == 1
    rows = [row for row in read_rows(tmp_path / "straight" / "metrics.csv") if row["split"] == "train"]
    for row in rows[:steps]:
        assert abs(row["boundary_rate.0"] - 0.3) < 0.12, "two micro-batches of 48 tokens, calibrated on the first"
    found = thresholds(tmp_path / "straight" / "checkpoints" / "step-00000008")
    assert len(found) == 2
    assert all((tau != 0.9).all() for tau in found.values())

    # The schedule depends on the steps of the whole run, so it is the clock that stops this one.
    assert cli(*arguments, "--run-dir", "stopped", "training.max_minutes=1e-9").code == 0
    again = cli(*arguments, "--run-dir", "stopped", "--resume", "auto")
    assert again.code == 0, again.err
    assert again.err.count("Thresholds for a boundary rate") == (steps > 1)
    train = [row for row in exact_rows(tmp_path / "stopped") if row["split"] == "train"]
    assert train == [row for row in exact_rows(tmp_path / "straight") if row["split"] == "train"]
    for name, tau in thresholds(tmp_path / "stopped" / "checkpoints" / "step-00000008").items():
        assert torch.equal(tau, found[name])


def test_a_steered_run_keeps_the_rate_and_goes_on_as_if_nothing_had_happened(cli, micro_recipe, tmp_path):
    arguments = [
        "fit", "--recipe", micro_recipe, "training.threads=1", "model.mixer.memory.calibrate_rate=0.3",
        "logging.memory_every=1", "training.validate_every=null", "training.steps=24", "checkpoint.every=12",
        "optimizer.lr=0.02",
    ]  # fmt: skip
    steer = "model.mixer.memory.steer=0.1"
    assert cli(*arguments, "--run-dir", "left").code == 0
    assert cli(*arguments, steer, "--run-dir", "straight").code == 0
    left, kept = (
        [row for row in read_rows(tmp_path / name / "metrics.csv") if row["split"] == "train"]
        for name in ("left", "straight")
    )
    assert left[0]["boundary_rate.0"] == kept[0]["boundary_rate.0"], "the first step is calibrated in both"
    names = ["boundary_rate.0", "boundary_rate.1"]
    drift = [max(abs(sum(row[name] for row in rows[12:]) / 12 - 0.3) for name in names) for rows in (left, kept)]
    assert drift[0] > 0.2, "left to itself it drifts"
    assert drift[1] < drift[0] / 2, "steps of 96 tokens at a high rate: it is followed, not held to the digit"

    found = thresholds(tmp_path / "straight" / "checkpoints" / "step-00000024")
    early = thresholds(tmp_path / "straight" / "checkpoints" / "step-00000012")
    assert all(not torch.equal(tau, early[name]) for name, tau in found.items()), "they move to the end"
    shutil.copytree(tmp_path / "straight", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000024")
    assert cli(*arguments, steer, "--run-dir", "again", "--resume", "auto").code == 0
    for name, tau in thresholds(tmp_path / "again" / "checkpoints" / "step-00000024").items():
        assert torch.equal(tau, found[name])
    assert exact_rows(tmp_path / "again") == exact_rows(tmp_path / "straight")


def test_a_steered_threshold_moves_by_the_part_that_the_recipe_sets(cli, micro_recipe, tmp_path):
    settings = ["model.mixer.memory.calibrate_rate=0.3", "training.steps=2", "training.validate_every=null"]
    settings += ["checkpoint.every=1", "schedule.warmup=1"]
    moved = []
    for part in ("null", 0.1, 0.4):
        folder = tmp_path / f"by {part}"
        steer = f"model.mixer.memory.steer={part}"
        assert cli("fit", "--recipe", micro_recipe, *settings, steer, "--run-dir", folder).code == 0
        first, second = (thresholds(folder / f"checkpoints/step-{step:08d}") for step in (1, 2))
        moved.append(torch.stack([second[name] - tau for name, tau in first.items()]))
    assert not moved[0].any(), "calibrated in the first step alone"
    torch.testing.assert_close(moved[2], 4 * moved[1], rtol=1e-3, atol=1e-6)
    assert moved[1].abs().max() > 1e-4


def test_what_validation_reads_steers_nothing(cli, micro_recipe, tmp_path):
    memory = ["model.mixer.memory.calibrate_rate=0.3", "model.mixer.memory.steer=0.4"]
    for every in ("null", 1):
        settings = [*memory, "training.steps=3", "schedule.warmup=1", f"training.validate_every={every}"]
        assert cli("fit", "--recipe", micro_recipe, *settings, "--run-dir", f"every {every}").code == 0
    never, always = (thresholds(tmp_path / f"every {every}/checkpoints/step-00000003") for every in ("null", 1))
    assert all(torch.equal(always[name], tau) for name, tau in never.items())


def test_without_it_thresholds_stay(cli, micro_recipe, tmp_path):
    assert cli("fit", "--recipe", micro_recipe, "--run-dir", "run", "training.steps=4").code == 0
    assert all((tau == 0.9).all() for tau in thresholds(tmp_path / "run" / "checkpoints" / "step-00000004").values())


def test_a_skipped_step_leaves_steered_thresholds_alone(cli, micro_recipe, tmp_path, monkeypatch):
    norms = LanguageModelTraining.accepts
    monkeypatch.setattr(
        LanguageModelTraining,
        "accepts",
        lambda self, norm: norms(self, float("nan") if self.global_step == 3 else norm),
    )
    memory = ["model.mixer.memory.calibrate_rate=0.3", "model.mixer.memory.steer=0.5"]
    settings = [*memory, "training.steps=5", "training.validate_every=null", "checkpoint.every=1"]
    done = cli("fit", "--recipe", micro_recipe, *settings, "checkpoint.keep_last=9", "--run-dir", "run")
    assert done.code == 0, done.err
    assert "step 4 is skipped" in done.err
    after = [thresholds(tmp_path / f"run/checkpoints/step-{step:08d}") for step in (3, 4, 5)]
    for name, tau in after[0].items():
        assert torch.equal(after[1][name], tau)
        assert not torch.equal(after[2][name], tau)
