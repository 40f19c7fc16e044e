"""Two processes on the CPU, through the command line: the same training as in one."""

import os
import re
import signal

import pytest

from dla_train.runs.memory_file import read_lines
from dla_train.runs.metrics_file import read_rows


@pytest.fixture
def losses(tmp_path):
    def read(name, split="train", column="loss"):
        return [row[column] for row in read_rows(tmp_path / name / "metrics.csv") if row["split"] == split]

    return read


def test_two_processes_train_what_one_does_and_either_goes_on_with_the_other_s_run(
    cli, launch, fit_arguments, losses, tmp_path
):
    assert cli(*fit_arguments("one")).code == 0
    # Six steps on two processes, each with accumulation and clipping ...
    code, err = launch(fit_arguments("two", "strategy={kind: ddp, devices: 2}", "training.max_minutes=1000"))
    assert code == 0, err
    # Sums in another order: float32 has 1e-7 per operation, of which a step makes many.
    for column in ("loss", "grad_norm", "boundary_rate.0", "slots_in_use.1"):
        assert losses("two", column=column) == pytest.approx(losses("one", column=column), rel=1e-5)
    assert losses("two", "validation") == pytest.approx(losses("one", "validation"), rel=1e-5)
    assert min(losses("one", column="grad_norm")) > 0.5, "every step was clipped"
    one, two = (read_lines(tmp_path / name / "memory.jsonl") for name in ("one", "two"))
    assert two[:2] == one[:2], "of step 1, where weights are the same to the last bit: all ranks' tokens are counted"
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 1, 4, 4, 8, 8]

    assert err.count("step 3/8 ") == 1, "rank 0 alone talks"
    assert "sync_dist" not in err, "Lightning's advice on metrics that are the same on all ranks"
    assert "ddp on 2 processes (2 per node, started by dla-train)" in err
    assert (tmp_path / "two/logs/rank-1.log").is_file()
    assert sorted(path.name for path in (tmp_path / "two").glob(".*")) == [".lock"]

    # ... and one process goes on from a checkpoint of two.
    for name in ("checkpoints/step-00000008", "report.md"):
        path = tmp_path / "two" / name
        path.rename(path.with_name("gone"))
    done = cli(*fit_arguments("two", "--resume", "auto"))
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)


def test_one_rank_alone_tells_weights_and_biases(fit_on, tmp_path):
    pytest.importorskip("wandb")
    offline = "import os; os.environ['WANDB_MODE'] = 'offline'"
    err = fit_on(2, "two", "strategy={kind: ddp, devices: 2}", "logging.wandb={}", before=offline)
    assert err.count("W&B: offline, in") == 1
    assert len(list((tmp_path / "two/wandb").glob("offline-run-*"))) == 1
    assert "W&B" not in (tmp_path / "two/logs/rank-1.log").read_text()


@pytest.mark.slow
def test_a_signal_to_any_rank_stops_all_at_one_step_and_torchrun_goes_on(
    cli, launch, fit_arguments, losses, wait_for_step, tmp_path
):
    settings = ("training.steps=40", "strategy={kind: ddp, devices: 2}")
    assert cli(*fit_arguments("one", "training.steps=40")).code == 0

    def tell_rank_1(process):
        (other,) = wait_for_step(process, "two", 6)
        os.kill(other, signal.SIGUSR1)

    code, err = launch(fit_arguments("two", *settings), kill=tell_rank_1)
    assert code == 128 + signal.SIGUSR1, err  # rank 0 knows by what rank 1 was told to stop
    (step,) = map(int, re.findall(r"stopped; step (\d+) is saved", err))
    assert 6 <= step < 40

    code, err = launch(fit_arguments("two", *settings, "--resume", "auto"), torchrun=2)
    assert code == 0, err
    assert f"going on from step {step}" in err
    assert "ddp on 2 processes (2 per node, started by torchrun)" in err
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [1, 2])
def test_a_killed_rank_ends_the_run_with_a_reason(launch, fit_arguments, wait_for_step, tmp_path, shared):
    """Also where the other one waits for it in the middle of a layer."""

    def kill_rank_1(process):
        (other,) = wait_for_step(process, "two", 6)
        os.kill(other, signal.SIGKILL)

    strategy = f"strategy={{kind: ddp, devices: 2, context_parallel: {shared}}}"
    code, err = launch(fit_arguments("two", "training.steps=4000", strategy), kill=kill_rank_1)
    assert code == 1
    assert "dla-train: rank 1 was killed by signal 9." in err
    assert "error: rank 0 lost contact with another process at step" in err
    assert "The newest checkpoint is that of step" in err
    assert "Traceback" not in err
    assert (tmp_path / "two/checkpoints/step-00000004").is_dir()


@pytest.mark.slow
def test_a_refusal_is_told_once_and_leaves_nothing(launch, fit_arguments, tmp_path):
    code, err = launch(fit_arguments("two", "strategy={kind: ddp, devices: 2}", "data.vocab_size=100000"), torchrun=2)
    assert code != 0
    assert err.count("dla-train: error:") == 1, err
    assert not (tmp_path / "two").exists()
