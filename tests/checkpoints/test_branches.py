"""Runs that begin in a new folder at a checkpoint of another run."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from dla_train.checkpoints.manifest import Manifest
from tests.checkpoints.conftest import content, fit_shortly


def test_a_branch_may_change_what_fits_the_state_and_says_so(cli, micro_recipe, run):
    settings = ["optimizer.lr=1e-3", "optimizer.weight_decay=0.5", "schedule.warmup=1", "training.clip=0.1"]
    branch = ["--run-dir", "branch", "training.global_batch=8", *settings]
    done = fit_shortly(cli, micro_recipe, "--resume", run / "checkpoints/step-00000004", *branch)
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err
    assert (
        "warning: branched off with other settings: optimizer.lr 0.01 there and 0.001 here, optimizer.weight_decay 0.1 "
        "there and 0.5 here, schedule.warmup 3 there and 1 here, training.global_batch 4 there and 8 here, "
        "training.clip 1.0 there and 0.1 here." in done.err
    )
    assert "the data or its order" not in done.err
    state = torch.load("branch/checkpoints/step-00000006/state.ckpt", weights_only=True)
    decay, no_decay = state["optimizer_states"][0]["param_groups"]
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.5, 0.0), "not those of the checkpoint"
    assert 0 < decay["lr"] <= 1e-3
    read = Manifest.read(Path("branch/checkpoints/step-00000006")).consumed
    assert read is not None
    assert read.windows == 4 * 4 + 2 * 8
    again = fit_shortly(cli, micro_recipe, "--resume", "auto", *branch, "training.steps=8")
    assert again.code == 0, again.err
    assert "branched off" not in again.err
    per_window = read.tokens // read.windows
    with open("branch/metrics.csv", newline="") as file:
        tokens = {int(row["step"]): int(row["tokens"]) for row in csv.DictReader(file)}
    assert {step: count / per_window for step, count in tokens.items()} == {5: 24, 6: 32, 7: 40, 8: 48}
    refused = fit_shortly(cli, micro_recipe, "--resume", "auto", "--run-dir", "branch")
    assert refused.code == 2
    assert "optimizer.lr 0.001 there and 0.01 here" in refused.err


@pytest.mark.parametrize("path", ["runs/micro/checkpoints/step-00000004", "runs/micro"])
def test_a_run_can_branch_off_into_a_new_folder(cli, micro_recipe, run, path):
    before = content(run)
    done = fit_shortly(cli, micro_recipe, "training.steps=8", "--run-dir", "branch", "--resume", path)
    assert done.code == 0, done.err
    assert Path("branch/checkpoints/step-00000008").is_dir()
    assert content(run) == before


def test_one_command_branches_off_and_goes_on(cli, micro_recipe, run):
    """What a batch script that is run again needs."""
    again = [
        "fit",
        "--recipe",
        micro_recipe,
        "--run-dir",
        "branch",
        "--resume",
        f"auto:{run}/checkpoints/step-00000004",
    ]
    again += ["optimizer.lr=1e-3", "checkpoint.every=1"]
    first = cli(*again, "training.steps=6")
    assert first.code == 0, first.err
    assert f"going on from step 4 ({run}/checkpoints/step-00000004)" in first.err
    assert "branched off with other settings: optimizer.lr 0.01 there and 0.001 here" in first.err
    second = cli(*again, "training.steps=8")
    assert second.code == 0, second.err
    assert "going on from step 6 (branch/checkpoints/step-00000006)" in second.err
    assert "branched off" not in second.err


def test_a_branch_that_has_nothing_to_train_is_refused(cli, micro_recipe, run):
    done = fit_shortly(cli, micro_recipe, "--resume", run, "--run-dir", "branch")
    assert done.code == 2
    assert "training.steps: it is 6, and runs/micro/checkpoints/step-00000006 has all of them" in done.err
    assert not Path("branch").exists()


def test_auto_does_not_begin_a_branch_at_step_0(cli, micro_recipe, run):
    path = run / "checkpoints/step-00000004"
    assert fit_shortly(cli, micro_recipe, "--run-dir", "branch", "--resume", path).code == 0
    shutil.rmtree("branch/checkpoints")  # as a kill before the first of them leaves it
    Path("branch/report.md").unlink()
    before = content(Path("branch"))
    done = fit_shortly(cli, micro_recipe, "--run-dir", "branch", "--resume", "auto")
    assert done.code == 2
    assert (
        "this run was branched off at step 4, and there is no checkpoint in branch/checkpoints: give --resume PATH "
        "again (the last start was: " in done.err
    )
    assert content(Path("branch")) == before
    again = fit_shortly(cli, micro_recipe, "--run-dir", "branch", "--resume", path)
    assert again.code == 0, again.err
    assert "going on from step 4" in again.err


def test_a_copy_of_a_checkpoint_under_another_name_is_refused(cli, micro_recipe, run):
    copy = run / "checkpoints/step-00000004-backup"
    shutil.copytree(run / "checkpoints/step-00000004", copy)
    done = fit_shortly(cli, micro_recipe, "--run-dir", "other", "--resume", copy)
    assert done.code == 2
    assert f"there is no checkpoint at {copy}." in done.err
    assert "(a copy has that name, too)" in done.err


def test_the_run_folder_itself_as_path_is_auto(cli, micro_recipe, run):
    (run / "checkpoints/step-00000006/manifest.json").unlink()
    done = fit_shortly(cli, micro_recipe, "--resume", run)
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err


def test_going_back_within_a_folder_is_refused(cli, micro_recipe, run):
    done = fit_shortly(cli, micro_recipe, "--resume", run / "checkpoints/step-00000004")
    assert done.code == 2
    assert "has a newer checkpoint (step 6)" in done.err
    assert "to branch off at this one, give a new folder with --run-dir" in done.err


def test_the_newest_checkpoint_of_the_folder_may_be_named(cli, micro_recipe, run):
    newest = run / "checkpoints/step-00000006"
    done = cli("fit", "--recipe", micro_recipe, "training.steps=7", "--resume", newest)
    assert done.code == 0, done.err
    assert "going on from step 6" in done.err
