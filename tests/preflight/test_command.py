"""`dla-train preflight` as a user has it: short runs in processes of their own."""

import signal
import time

import pytest

from dla_train.preflight import preflight

SHORT = ("training.steps=30", "schedule.warmup=2", "training.threads=1")


@pytest.fixture
def start(fork_process, micro_recipe):
    def run(*arguments, **variables):
        return fork_process("-m", "dla_train", "preflight", "--recipe", micro_recipe, *SHORT, *arguments, **variables)

    return run


def verdicts(out):
    """Column three of the table, by the first."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    return {what.split(":")[0]: verdict for what, _, verdict in rows[1:]}


def test_a_recipe_that_trains_here(start, tmp_path):
    process = start("--steps", 4, "--run-dir", "there")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert verdicts(out) == {
        "run": "ok",
        "speed": "",
        "checkpoint": "ok",
        "stop": "ok",
        "going on": "ok",
        "op of mamba2, dynamic memory": "ok",
        "convolution, scaled heads, gated norm, slot weights, SwiGLU": "ok",
    }
    assert "the same to the last bit" in out
    assert out.splitlines()[0] == "# Preflight of micro"
    assert out.splitlines()[-1] == "All is well."
    assert "going on from step 3" in err
    assert "step 3/30  validation loss" in err
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
def test_two_processes_of_a_launcher(start_process, micro_recipe, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = ("-m", "dla_train", "preflight", "--recipe", micro_recipe, *SHORT, "--steps", 4, "--run-dir", "there")
    process = start_process(*launcher, *command, "strategy=ddp", "training.micro_batch=1")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert set(verdicts(out).values()) == {"ok", ""}
    assert "ddp on 2 processes" in err
    assert not (tmp_path / "there").exists()


def test_what_fit_refuses_is_refused_once(start, tmp_path):
    process = start("data.path=nowhere")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert out == ""
    assert "data.path: no corpus at nowhere" in err
    assert not list(tmp_path.glob("runs/*/*"))


def test_ctrl_c_leaves_nothing(start, tmp_path):
    process = start("--run-dir", "there", "--steps", 25)
    deadline = time.monotonic() + 200
    while not (tmp_path / "there" / "first" / "metrics.csv").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "dla-train preflight needs --recipe NAME_OR_PATH"),
        (("--recipe", "tiny", "--steps", "2"), "--steps is 2; it must be at least 3"),
        (
            ("--recipe", "tiny", "training.steps=8", "schedule.warmup=2"),
            "on the command line: training.steps: it is 8; a preflight of 8 steps needs more",
        ),
        (("--recipe", "tiny", "training.stepz=8"), "Did you mean training.steps?"),
    ],
)
def test_wrong_usage(cli, arguments, message):
    done = cli("preflight", *arguments)
    assert done.code == 2
    assert message in done.err


def test_runs_of_another_preflight_are_not_touched(cli, tmp_path):
    (tmp_path / "runs" / "tiny-preflight" / "first").mkdir(parents=True)
    done = cli("preflight", "--recipe", "tiny")
    assert done.code == 2
    assert "runs/tiny-preflight holds the runs of another preflight" in done.err
    assert (tmp_path / "runs" / "tiny-preflight" / "first").is_dir()


def test_runs_are_kept_where_a_kernel_is_wrong(cli, micro_recipe, monkeypatch, tmp_path):
    from dla_train.preflight.check import Check
    from dla_train.preflight.trial import Ran

    def run(trial, say):
        trial.first.path.mkdir(parents=True)
        return Ran(rows=[], code=0, stop_seconds=None), None

    monkeypatch.setattr(preflight, "run_trial", run)
    monkeypatch.setattr(preflight, "judge", lambda *arguments, **options: [Check(what="run", found="", is_right=True)])
    wrong = Check(what="op", found="d v off", is_right=False)
    monkeypatch.setattr(preflight, "check_kernels", lambda *arguments: [wrong])
    done = cli("preflight", "--recipe", micro_recipe, *SHORT)
    assert done.code == 1
    assert "1 check of 2 failed: op." in done.out
    assert "kept in runs/micro-preflight" in done.err
    assert (tmp_path / "runs" / "micro-preflight" / "first").is_dir()
