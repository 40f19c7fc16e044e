"""What the two runs of a preflight are taken for."""

import shutil
import signal
from argparse import Namespace
from dataclasses import replace

import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.distributed.placement import Placement
from dla_train.preflight.check import Check, render
from dla_train.preflight.judge import judge
from dla_train.preflight.trial import Ran, Trial

ALONE = Placement(rank=0, local_rank=0, devices=1, nodes=1, address="127.0.0.1", port=1, launcher="dla-train")
STOPPED = 128 + signal.SIGUSR1


def rows(*steps, change=0.0, **more):
    """Rows of `metrics.csv`, whose losses fall; from step 7 on they are changed."""
    return [
        {
            "step": step,
            "split": "train",
            "loss": (8.0 - step / 10) * (1 + (change if step >= 7 else 0)),
            "grad_norm": 1.0,
            "skipped": 0,
            "tokens_per_second": 100.0 if step == 1 else 2048.0 + step,
            "seconds": 1.0 * step,
        }
        | more
        for step in steps
    ]


FIRST = Ran(rows=rows(*range(1, 9)), code=STOPPED, stop_seconds=1.5)
AGAIN = Ran(rows=rows(6, 7, 8), code=STOPPED, stop_seconds=1.0)


@pytest.fixture
def judged(tmp_path):
    """Checks by name, for runs with a checkpoint of 1,000,000 bytes."""

    def check(first=FIRST, again=AGAIN, *settings, on_cpu=True, estimated=None, room=None):
        trial = Trial(arguments=[], folder=tmp_path, steps=8, planned_steps=330, placement=ALONE)
        if again is not None:
            trial.checkpoint.mkdir(parents=True, exist_ok=True)
            (trial.checkpoint / "state.ckpt").write_bytes(b"x" * 1_000_000)
        recipe = load(find("tiny"), settings).recipe
        found = judge(recipe, trial, first, again, on_cpu=on_cpu, estimated=estimated, room=room)
        return {one.what: one for one in found}

    return check


def test_all_is_well(judged):
    found = judged()
    assert list(found) == ["run", "speed", "checkpoint", "stop", "going on"]
    assert [one.is_right for one in found.values()] == [True, None, True, True, True]
    assert found["run"].found == "8 steps; training loss 7.9000, then 7.2000"
    # The first step waits for compilers: the median of the others, and 330 steps of 2,048 tokens.
    assert found["speed"].found == "2,053 tokens/s, 0.998 s a step; all 330 steps would take 5 min 29 s"
    assert found["checkpoint"].found.startswith("1.00 MB; up to 3 at a time take 3.00 MB, and ")
    assert found["stop"].found.startswith("1.5 s from SIGUSR1")
    assert found["going on"].found == "from step 5, 3 steps once more: the same to the last bit"


def test_memory_is_compared_with_the_estimate_on_a_gpu(judged):
    first = replace(FIRST, rows=rows(*range(1, 9), device_memory_gb=50.25, mfu=0.25))
    found = judged(first, AGAIN, on_cpu=False, estimated=49_700_000_000, room=141_000_000_000)
    assert found["memory of a device"].found == "50.25 GB of 141.00 GB; 49.70 GB by the estimate"
    assert ", mfu 25.0%;" in found["speed"].found


def test_a_run_that_ends_by_itself_is_wrong(judged):
    found = judged(replace(FIRST, rows=FIRST.rows[:2], code=1, stop_seconds=None), None)
    assert list(found) == ["run", "speed"]
    assert found["run"] == Check(
        what="run", found="ended with exit code 1 after 2 steps; what it said is above", is_right=False
    )


def test_a_run_killed_for_memory_is_wrong(judged):
    found = judged(Ran(rows=[], code=-9, stop_seconds=None), None)
    assert found["run"].found == (
        "was killed by SIGKILL, as the system does where main memory runs out (dmesg says so) after 0 steps; what it "
        "said is above"
    )


def test_a_loss_that_is_no_number_is_wrong(judged):
    found = judged(replace(FIRST, rows=[*rows(1, 2), *rows(3, loss=float("nan"), skipped=1)]), None)
    assert found["run"] == Check(what="run", found="the loss of step 3 is no number", is_right=False)


def test_skipped_steps_are_wrong(judged):
    found = judged(replace(FIRST, rows=rows(*range(1, 9), skipped=2)), None)
    assert found["run"].is_right is False
    assert "2 steps skipped" in found["run"].found


@pytest.mark.parametrize(
    ("change", "on_cpu", "is_right"), [(1e-9, True, False), (1e-5, False, True), (1e-3, False, False)]
)
def test_steps_that_come_out_differently(judged, change, on_cpu, is_right):
    again = replace(AGAIN, rows=rows(6, 7, 8, change=change))
    found = judged(FIRST, again, on_cpu=on_cpu)["going on"]
    assert found.is_right is is_right
    assert f"losses differ by up to {change:.1e} of themselves" in found.found


def test_other_columns_count_too(judged):
    again = replace(AGAIN, rows=rows(6, 7, 8, grad_norm=1.1))
    found = judged(FIRST, again)["going on"]
    assert found.is_right is False
    assert "the same losses, but not the same grad_norm, where the CPU should give the same bits" in found.found


def test_no_step_in_common_is_wrong(judged):
    assert judged(FIRST, replace(AGAIN, rows=rows(4, 5)))["going on"].is_right is False


def test_going_on_that_fails_is_wrong(judged):
    found = judged(FIRST, replace(AGAIN, code=1))["going on"]
    assert found.found == "from step 5: ended with exit code 1; what it said is above"
    assert found.is_right is False


def test_a_stop_that_takes_longer_than_slurm_waits_is_wrong(judged):
    found = judged(replace(FIRST, stop_seconds=130.0))["stop"]
    assert found.is_right is False
    assert "--warn-seconds" in found.found


def test_too_little_room_for_checkpoints_is_wrong(judged):
    many = ("training.steps=1000000000", "checkpoint.every=1", "checkpoint.keep_last=1000000000")
    found = judged(FIRST, AGAIN, *many)["checkpoint"]
    assert found.is_right is False


def test_checkpoints_that_are_kept_for_good_are_counted(judged):
    settings = ("training.steps=1000", "checkpoint.every=20", "checkpoint.keep_every=50")
    assert "up to 13 at a time" in judged(FIRST, AGAIN, *settings)["checkpoint"].found  # every 100 steps one for good


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        (("checkpoint.keep_last=1000",), 3),  # all there are, of 330 steps
        (("checkpoint.every=330",), 1),
        (("checkpoint.every=null", "checkpoint.keep_last=4", "checkpoint.keep_every=10"), 5),
    ],
)
def test_no_more_checkpoints_are_counted_than_a_run_saves(judged, settings, number):
    settings = ("checkpoint.every=110", *settings)
    assert f"up to {number} at a time" in judged(FIRST, AGAIN, *settings)["checkpoint"].found


def test_what_the_preflight_itself_has_written_counts_as_free(judged, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Namespace(free=2_500_000))
    found = judged(FIRST, AGAIN)["checkpoint"]  # room for three of 1 MB, as soon as the one that is there is removed
    assert found.is_right is True
    assert "3.50 MB are free" in found.found


@pytest.mark.parametrize(("one", "other", "is_right"), [(0.0, 0.0, True), (0.0, 1e-6, True), (0.0, 1.0, False)])
def test_a_loss_of_nothing_can_be_compared(judged, one, other, is_right):
    first = replace(FIRST, rows=rows(*range(1, 9), loss=one))
    again = replace(AGAIN, rows=rows(6, 7, 8, loss=other))
    assert judged(first, again, on_cpu=False)["going on"].is_right is is_right


def test_losses_that_are_no_numbers_both_times_are_the_same(judged):
    """As steps that are skipped have them; that they are wrong is said of the run."""
    first = replace(FIRST, rows=[*rows(*range(1, 8)), *rows(8, loss=float("nan"))])
    found = judged(first, replace(AGAIN, rows=[*rows(6, 7), *rows(8, loss=float("nan"))]))
    assert found["run"].is_right is False
    assert found["going on"].found == "from step 5, 3 steps once more: the same to the last bit"
    found = judged(first, AGAIN, on_cpu=False)["going on"]
    assert found.is_right is False
    assert "differ by up to inf" in found.found


def test_the_table_says_what_failed():
    checks = [
        Check(what="run", found="8 steps", is_right=True),
        Check(what="speed", found="slow"),
        Check(what="stop", found="never", is_right=False),
    ]
    assert render("tiny", checks).splitlines() == [
        "# Preflight of tiny",
        "",
        "| what  | found   |       |",
        "|-------|---------|-------|",
        "| run   | 8 steps | ok    |",
        "| speed | slow    |       |",
        "| stop  | never   | WRONG |",
        "",
        "1 check of 2 failed: stop.",
    ]
    assert render("tiny", checks[:2]).splitlines()[-1] == "All is well."
