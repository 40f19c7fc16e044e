"""The promise: stop a run anywhere, however rudely; `--resume auto` goes on as if nothing had happened."""

import re
import signal
import time
from pathlib import Path

import pytest

from dla_train.runs.metrics_file import read_rows
from tests.training.exact_rows import exact_rows

KILLED_WHILE_SAVING = """
import os, signal, sys
from dla_train.checkpoints import store
from dla_train.cli.main import main
seal = store._seal
def seal_or_die(folder, step, *rest):
    if step == 12: os.kill(os.getpid(), signal.SIGKILL)
    seal(folder, step, *rest)
store._seal = seal_or_die
main(sys.argv[1:])
"""


def _kill_at(process, folder, step):
    """Wait until `step` stands in metrics.csv, then kill."""
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in read_rows(folder / "metrics.csv")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before the kill"


@pytest.mark.xdist_group("exact resume")
def test_losses_of_a_run_killed_twice_are_bitwise_those_of_one_that_never_stopped(
    cli, start_process, fork_process, micro_recipe, tmp_path
):
    arguments = ["fit", "--recipe", micro_recipe, "training.threads=1"]
    assert cli(*arguments, "--run-dir", "straight").code == 0
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    arguments += ["--run-dir", "killed", "--resume", "auto"]

    # Once from outside at some moment, before or after the checkpoint of step 4, ...
    _kill_at(start_process("-m", "dla_train", *arguments), killed, step=5)
    # ... once in the middle of writing the checkpoint of step 12: the state is there, its manifest is not.
    process = fork_process("-c", KILLED_WHILE_SAVING, *arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    assert [path.name.startswith(".unfinished-step-00000012-") for path in (killed / "checkpoints").glob(".*")] == [
        True
    ]
    assert not (killed / "checkpoints" / "step-00000012").exists()
    finished = cli(*arguments)
    assert finished.code == 0, finished.err
    assert "going on from step 8" in finished.err

    rows = exact_rows(straight)
    assert [int(row["step"]) for row in rows if row["split"] == "train"] == list(range(1, 21))
    assert [int(row["step"]) for row in rows if row["split"] == "validation"] == [5, 10, 15, 20]
    assert all(re.fullmatch(r"\d\.\d{10,}", row["loss"]) for row in rows), "losses are written to the last bit"
    assert exact_rows(killed) == rows
    assert len({row["loss"] for row in rows}) == len(rows)

    names = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert names == ["step-00000016", "step-00000020"], "nothing half-written stays"
    assert _sample(killed) == _sample(straight), "weights too: the same sample"


def test_a_branch_killed_before_its_first_interval_goes_on_with_what_it_branched_off_from(
    cli, fork_process, micro_recipe, tmp_path
):
    arguments = ["fit", "--recipe", micro_recipe, "training.threads=1", "checkpoint.background=false"]
    assert cli(*arguments, "checkpoint.keep_last=9", "--run-dir", "straight").code == 0
    straight, branch = tmp_path / "straight", tmp_path / "branch"
    arguments += ["checkpoint.every=null", "--run-dir", "branch"]
    begins = fork_process("-m", "dla_train", *arguments, "--resume", straight / "checkpoints/step-00000008")
    _kill_at(begins, branch, step=9)
    assert [path.name for path in (branch / "checkpoints").iterdir()] == ["step-00000008"]
    done = cli(*arguments, "--resume", "auto")
    assert done.code == 0, done.err
    assert "going on from step 8 (branch/checkpoints/step-00000008)" in done.err
    assert exact_rows(branch) == [row for row in exact_rows(straight) if int(row["step"]) > 8]
    assert _sample(branch) == _sample(straight)


def _sample(folder):
    (sample,) = re.findall(r"▸.*?(?=\n\nRun folder)", (folder / "report.md").read_text(), re.DOTALL)
    return sample


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_truncated_newest_checkpoint_is_named_and_the_one_before_gives_the_same_losses(
    cli, micro_recipe, tmp_path, optimizer
):
    arguments = ["fit", "--recipe", micro_recipe, f"optimizer={{kind: {optimizer}, lr: 1e-2}}"]
    assert cli(*arguments, "--run-dir", "straight").code == 0
    rows = exact_rows(tmp_path / "straight")

    newest = tmp_path / "straight" / "checkpoints" / "step-00000020" / "state.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    done = cli(*arguments, "--run-dir", "straight", "--resume", "auto")
    assert done.code == 0, done.err
    assert re.search(
        r"warning: the checkpoint straight/checkpoints/step-00000020 is damaged \(state.ckpt has 1,000 bytes instead "
        r"of [\d,]+\); trying the one before\.",
        done.err,
    )
    assert "going on from step 16" in done.err
    assert "the damaged checkpoint is kept as straight/checkpoints/damaged-step-00000020." in done.err
    assert exact_rows(tmp_path / "straight") == rows


def test_resume_before_the_first_checkpoint_starts_again(cli, fork_process, micro_recipe, tmp_path):
    arguments = ["fit", "--recipe", micro_recipe, "checkpoint.every=null", "--run-dir", "run"]
    _kill_at(fork_process("-m", "dla_train", *arguments), tmp_path / "run", step=2)
    done = cli(*arguments, "--resume", "auto")
    assert done.code == 0, done.err
    assert "going on" not in done.err
    assert [row["step"] for row in read_rows(Path("run/metrics.csv")) if row["split"] == "train"] == list(range(1, 21))
