"""`dla-train preflight` as a user has it: short runs in processes of their own."""

import os
import signal
import subprocess
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from dla_train.distributed.placement import Placement
from dla_train.preflight import meeting, preflight, trial
from dla_train.preflight.check import Check
from dla_train.preflight.trial import Ran, Trial

SHORT = ("training.steps=30", "schedule.warmup=2", "training.threads=1")


HEARING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from dla_train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""The command with the signals of a terminal, which are ignored where pytest runs in the background or under nohup."""


@pytest.fixture
def start(fork_process, micro_recipe):
    def run(*arguments, **variables):
        return fork_process("-c", HEARING, "preflight", "--recipe", micro_recipe, *SHORT, *arguments, **variables)

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
        "convolution, scaled heads, skip, gated norm, slot weights, RMSNorm, SwiGLU": "ok",
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


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "the preflight is stopped by SIGTERM"),
        (signal.SIGHUP, "the preflight is stopped by SIGHUP"),
    ],
)
def test_a_signal_leaves_nothing(start, tmp_path, number, said):
    process = start("--run-dir", "there", "--steps", 25)
    deadline = time.monotonic() + 200
    while not (tmp_path / "there" / "first" / "metrics.csv").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + number, err
    assert said in err
    assert not (tmp_path / "there").exists()


@pytest.fixture
def in_steps(cli, micro_recipe, monkeypatch):
    """A preflight in this process whose runs only make their folders, and whose kernels are `kernels()`."""

    def run(kernels, *arguments):
        def trained(trial, say):
            for folder in (trial.first, trial.again):
                folder.path.mkdir(parents=True)
            return Ran(rows=[], code=0, stop_seconds=None), None

        monkeypatch.setattr(preflight, "run_trial", trained)
        monkeypatch.setattr(preflight, "judge", lambda *one, **more: [Check(what="run", found="", is_right=True)])
        monkeypatch.setattr(preflight, "check_kernels", lambda *one: kernels())
        return cli("preflight", "--recipe", micro_recipe, *SHORT, *arguments)

    return run


def test_what_else_lies_in_the_folder_stays(in_steps, tmp_path):
    """It may be a disk's scratch folder, or the run folder of the later run."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "thesis.txt").write_text("years of work")
    done = in_steps(list, "--run-dir", "scratch")
    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("place", ["new/deeper", "link/deeper", "-odd 'name' a=b"])
def test_folders_that_were_not_there_are_removed(in_steps, tmp_path, place):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    done = in_steps(list, f"--run-dir={place}")
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "real"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_kernels_are_compared_leaves_nothing(in_steps, tmp_path, number):
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    outside = signal.signal(number, usual)  # ignored where pytest runs in the background or under nohup

    def stopped():
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("goes on")

    try:
        done = in_steps(stopped)
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, outside)
    assert done.code == 128 + number
    assert not list(tmp_path.iterdir())


@pytest.fixture
def as_rank(cli, micro_recipe, monkeypatch):
    """A preflight as one of two ranks of torchrun, whose `fit` ends with `code`; one after the other, as they only wait
    for what the test is about."""
    store = HashStore()

    def run(rank, code=0, kernels=list):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "29500")
        monkeypatch.setattr(meeting, "meet", lambda placement: store)
        monkeypatch.setattr(meeting, "LEAVE_TIME", timedelta(0))
        monkeypatch.setattr(preflight, "accompany", lambda trial, meeting: code)
        monkeypatch.setattr(preflight, "run_trial", lambda trial, say: (Ran(rows=[], code=0, stop_seconds=None), None))
        monkeypatch.setattr(preflight, "judge", lambda *one, **more: [Check(what="run", found="", is_right=True)])
        monkeypatch.setattr(preflight, "check_kernels", lambda *one: kernels())
        settings = ("strategy=ddp", "training.micro_batch=1", "--run-dir", "there")
        return cli("preflight", "--recipe", micro_recipe, *SHORT, *settings)

    return run


def test_what_is_wrong_on_another_rank_is_said_by_the_first(as_rank, tmp_path):
    """The other one must not be the first to fail: torchrun would end rank 0 before it has said anything."""
    right, wrong = Check(what="layers", found="", is_right=True), Check(what="op", found="d v off", is_right=False)
    done = as_rank(1, code=-9, kernels=lambda: [right, wrong])
    assert (done.code, done.out) == (0, "")
    done = as_rank(0)
    assert done.code == 1
    assert "2 checks of 3 failed: rank 1: run, rank 1: op." in done.out
    assert "was killed by SIGKILL" in done.out


def test_all_is_well_on_two_ranks(as_rank, tmp_path):
    assert as_rank(1).code == 0
    done = as_rank(0)
    assert done.code == 0, done.err
    assert not list(tmp_path.iterdir())


def test_a_rank_that_alone_is_refused_is_not_waited_for(as_rank):
    def compare():
        raise AssertionError("no kernel is of interest")

    assert as_rank(1, code=2, kernels=compare).code == 0
    done = as_rank(0)
    assert done.code == 1
    assert "rank 1: run | ended with exit code 2" in done.out


def test_a_rank_that_never_says_what_it_found_is_wrong(as_rank, monkeypatch):
    monkeypatch.setattr(preflight, "_PATIENCE_SECONDS", 0.1)
    assert "has not said what its kernels compute" in as_rank(0).out


@pytest.mark.parametrize(("port", "expected"), [(29500, "29501"), (65535, "65534")])
def test_runs_meet_at_a_port_of_their_own_and_do_not_speak_to_the_job(monkeypatch, tmp_path, port, expected):
    given = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: given.update(options, command=command))
    monkeypatch.setenv("DLA_TRAIN_EXIT_CODE_FILE", "of-the-job")
    placement = Placement(rank=0, local_rank=0, devices=2, nodes=1, address="127.0.0.1", port=port, launcher="torchrun")
    one = Trial(arguments=[], folder=tmp_path, steps=4, planned_steps=30, placement=placement)
    trial._start(one, one.first, [], port_offset=1)
    assert given["env"]["MASTER_PORT"] == expected
    assert "DLA_TRAIN_EXIT_CODE_FILE" not in given["env"]


@pytest.mark.parametrize(
    ("trained", "ends_with", "expected"),
    [
        (6, "exit 0", (0, None)),  # all steps: the signal would end it while it writes its report
        (5, "kill -USR1 $$", (0, None)),  # the last step is done meanwhile, and the run is deaf to the signal
        (5, "exit 138", (138, 0.0)),
    ],
)
def test_a_run_is_not_stopped_after_its_last_step(tmp_path, trained, ends_with, expected):
    placement = Placement(rank=0, local_rank=0, devices=1, nodes=1, address="127.0.0.1", port=1, launcher="dla-train")
    one = Trial(arguments=[], folder=tmp_path, steps=4, planned_steps=6, placement=placement)
    one.first.path.mkdir()
    one.first.metrics.write_text(f"step,split,loss\n{trained},train,7.0\n")
    on_signal = f"trap 'trap - USR1; {ends_with}' USR1;" if trained == 5 else ""
    process = subprocess.Popen(["bash", "-c", f"{on_signal} sleep 1 & wait; wait; {ends_with}"])
    time.sleep(0.3)  # until bash has set its trap
    ran = trial._until(process, one, one.first, lambda: True)
    assert (ran.code, None if ran.stop_seconds is None else 0.0) == expected
    assert ran.ended_well


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "dla-train preflight needs --recipe NAME_OR_PATH"),
        (("--recipe", "tiny", "--steps", "2"), "--steps is 2; it must be at least 3"),
        (
            ("--recipe", "tiny", "training.steps=8", "schedule.warmup=2"),
            "on the command line: training.steps: it is 8; a preflight of 8 steps needs more. Give fewer --steps",
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


def test_runs_are_kept_where_a_kernel_is_wrong(in_steps, tmp_path):
    done = in_steps(lambda: [Check(what="op", found="d v off", is_right=False)])
    assert done.code == 1
    assert "1 check of 2 failed: op." in done.out
    assert "kept in runs/micro-preflight" in done.err
    assert (tmp_path / "runs" / "micro-preflight" / "first").is_dir()
