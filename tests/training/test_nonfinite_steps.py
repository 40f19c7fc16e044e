"""Steps whose gradient is not finite: skipped and counted, and the end of the run when there are too many in a row."""

import functools
import json
import math
import re

import pytest
import torch

from dla_train.models import LanguageModel
from dla_train.runs.metrics_file import read_rows
from tests.training.exact_rows import exact_rows

SETTINGS = ["training.validate_every=null", "training.threads=1", "checkpoint.every=1", "checkpoint.keep_last=100"]


@pytest.fixture
def diverge(multiply_loss):
    """Make the loss of the given training steps not a number; each step has two micro-batches."""
    return functools.partial(multiply_loss, math.nan)


def state(folder, step):
    return torch.load(folder / "checkpoints" / f"step-{step:08d}" / "state.ckpt", weights_only=True)


def test_too_many_in_a_row_end_the_run(cli, micro_recipe, diverge, tmp_path):
    diverge(*range(7, 21))
    done = cli("fit", "--recipe", micro_recipe, *SETTINGS, "training.max_nonfinite=2")
    assert done.code == 1
    assert (
        "step 7 is skipped: its gradient is nan; its windows have the global indices 24 to 27 (1 in a row" in done.err
    )
    assert (
        "the gradient of step 9 is nan, 3 in a row: training diverged; its windows have the global indices 32 to 35"
        in (done.err)
    )
    assert "Lower optimizer.lr (now 0.01)" in done.err
    folder = tmp_path / "runs/micro"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir())[-1] == "step-00000008"
    before, after = state(folder, 6), state(folder, 8)
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())

    (told,) = re.findall(r"dla-train (fit .*) KEY=VALUE", done.err)
    assert "--resume runs/micro/checkpoints/step-00000008 --run-dir runs/micro-from-8" in told
    diverge()
    advised = ["optimizer.lr=1e-3", "schedule.warmup=5", "training.clip=0.5"]
    done = cli(*told.split(), *advised)
    assert done.code == 0, done.err
    assert "going on from step 8" in done.err


def test_none_are_skipped_if_none_may_be(cli, micro_recipe, diverge):
    diverge(3)
    done = cli("fit", "--recipe", micro_recipe, *SETTINGS, "training.max_nonfinite=0")
    assert done.code == 1
    assert "the gradient of step 3 is nan, 1 in a row: training diverged" in done.err
    assert "skipped:" not in done.err


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_step_leaves_weights_and_optimizer_alone_and_training_goes_on(
    cli, micro_recipe, diverge, tmp_path, optimizer
):
    diverge(5, 6, 9)
    settings = [*SETTINGS, "training.max_nonfinite=2", f"optimizer={{kind: {optimizer}, lr: 0.01}}"]
    settings += ["training.steps=11", "report.prompt=null", "report.bigram=false"]
    done = cli("fit", "--recipe", micro_recipe, *settings, "--run-dir", "straight")
    assert done.code == 0, done.err
    folder = tmp_path / "straight"
    rows = [row for row in read_rows(folder / "metrics.csv") if row["split"] == "train"]
    assert [row["skipped"] for row in rows] == [0, 0, 0, 0, 1, 2, 2, 2, 3] + [3] * 2
    assert [row["step"] for row in rows if row["loss"] != row["loss"]] == [5, 6, 9]
    before, after = state(folder, 4), state(folder, 6)
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
    for name, kept in before["optimizer_states"][0]["state"].items():
        for part, value in kept.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(after["optimizer_states"][0]["state"][name][part])
            )
    assert not torch.equal(
        state(folder, 7)["state_dict"]["model.embedding.weight"], after["state_dict"]["model.embedding.weight"]
    )

    # Going on after the first of two skipped steps: the count in a row goes on, too.
    again = ["fit", "--recipe", micro_recipe, *settings, "--run-dir", "stopped"]
    diverge(5, 6, 9)
    assert cli(*again, "training.max_minutes=1e-9").code == 0
    for _ in range(4):
        step = read_rows(tmp_path / "stopped/metrics.csv")[-1]["step"]
        diverge(5, 6, 9, first=step + 1)
        assert cli(*again, "--resume", "auto", "training.max_minutes=1e-9").code == 0
    step = read_rows(tmp_path / "stopped/metrics.csv")[-1]["step"]
    assert step == 5, "one more step each time"
    diverge(5, 6, 9, first=step + 1)
    last = cli(*again, "--resume", "auto")
    assert last.code == 0, last.err
    assert (
        "step 6 is skipped: its gradient is nan; its windows have the global indices 20 to 23 (2 in a row" in last.err
    )
    train = [row for row in exact_rows(tmp_path / "stopped") if row["split"] == "train"]
    assert train == [row for row in exact_rows(folder) if row["split"] == "train"]


def test_the_report_of_a_run_that_survived_leaves_such_steps_out(cli, micro_recipe, diverge, tmp_path):
    def strictly(path):
        return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))

    settings = [*SETTINGS, "training.validation_windows=0", "report.prompt=null", "training.steps=4"]
    diverge(2)
    done = cli("fit", "--recipe", micro_recipe, *settings, "--run-dir", "one")
    assert done.code == 0, done.err
    losses = [row["loss"] for row in read_rows(tmp_path / "one/metrics.csv") if row["step"] != 2]
    mean = sum(losses) / 3
    assert f"{mean:.4f} nats per token (mean of the last 4 steps without 1 whose loss is no number; no" in done.out
    assert "| skipped steps | 1, which changed no weight" in done.out
    report = strictly(tmp_path / "one/report.json")
    assert report["training_loss"] == pytest.approx(mean)
    assert (report["training_loss_steps"], report["skipped_steps"]) == (3, 1)

    diverge(1, 2, 3, 4)
    done = cli("fit", "--recipe", micro_recipe, *settings, "training.max_nonfinite=4", "--run-dir", "all")
    assert done.code == 0, done.err
    assert "| training loss | no number in the last 4 steps; no validation" in done.out
    assert strictly(tmp_path / "all/report.json")["training_loss"] is None


def test_a_negative_number_is_refused(cli, micro_recipe):
    done = cli("fit", "--recipe", micro_recipe, "training.max_nonfinite=-1")
    assert done.code == 2
    assert "max_nonfinite is -1; it must be at least 0" in done.err


def test_a_model_whose_validation_loss_is_no_number_is_no_finished_run(cli, micro_recipe):
    """Although fewer steps in a row were skipped than are allowed."""
    settings = ["optimizer.lr=1e30", "training.clip=null", "training.max_nonfinite=9", "training.validate_every=4"]
    done = cli("fit", "--recipe", micro_recipe, "training.steps=8", "schedule.warmup=0", *settings)
    assert done.code == 1
    assert (
        "the validation loss after step 4 is not finite: training diverged. Lower optimizer.lr (now 1e+30)" in done.err
    )


def test_one_validation_batch_that_is_no_number_is_not_left_out_of_the_mean(cli, micro_recipe, monkeypatch):
    loss = LanguageModel.loss
    calls = [0]

    def one_is_nan(self, *arguments, **named):
        calls[0] += not torch.is_grad_enabled()
        return loss(self, *arguments, **named) * (float("nan") if calls[0] == 2 else 1.0)

    monkeypatch.setattr(LanguageModel, "loss", one_is_nan)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=4", "training.micro_batch=1")
    assert calls[0] > 2
    assert done.code == 1
    assert "the validation loss after step 4 is not finite: training diverged." in done.err
