"""Told to stop, a run finishes its step, saves it, and says how to go on."""

import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from lightning.pytorch.callbacks import Callback

from dla_train.callbacks.stop_signal import StopSignal
from dla_train.runs.metrics_file import read_rows
from dla_train.training import fit as fit_module


class Raise(Callback):
    """Sends signals to this very process in the middle of step 6."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 6:  # of the steps after 6 finished ones: the seventh
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.fixture(autouse=True)
def hangs_up():
    """SIGHUP as a terminal has it, even if the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def told(cli, micro_recipe, monkeypatch, tmp_path):
    """Run `fit`, send it signals; returns what it said and its folder."""
    build = fit_module.build_trainer

    def run(*numbers, settings=()):
        with monkeypatch.context() as patch:
            patch.setattr(
                fit_module,
                "build_trainer",
                lambda config, *, callbacks, **rest: build(config, callbacks=[*callbacks, Raise(*numbers)], **rest),
            )
            return cli("fit", "--recipe", micro_recipe, *settings), tmp_path / "runs" / "micro"

    return run


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_the_step_and_says_how_to_go_on(told, cli, number, code):
    done, folder = told(number)
    assert done.code == code
    assert "stopped; step 7 is saved. Go on with: dla-train fit --run-dir runs/micro --resume auto" in done.err
    assert "Traceback" not in done.err
    assert [row["step"] for row in read_rows(folder / "metrics.csv") if row["split"] == "train"] == list(range(1, 8))

    (command,) = re.findall(r"Go on with: dla-train (.*)", done.err)
    again = cli(*command.split())
    assert again.code == 0, again.err
    assert "going on from step 7" in again.err
    assert [row["step"] for row in read_rows(folder / "metrics.csv") if row["split"] == "train"] == list(range(1, 21))


def test_a_second_ctrl_c_stops_at_once_and_leaves_a_sound_state(told, cli, micro_recipe):
    done, folder = told(signal.SIGINT, signal.SIGINT)
    assert done.code == 130
    assert "stopped; step 4 is saved." in done.err, "the last regular checkpoint, not the step that was cut short"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000004"]
    assert cli("fit", "--recipe", micro_recipe, "--resume", "auto").code == 0


def test_stopped_at_once_without_any_checkpoint_it_says_how_much_is_lost(told):
    done, _ = told(signal.SIGINT, signal.SIGINT, settings=["checkpoint.every=null"])
    assert done.code == 130
    assert "stopped after 6 steps, none of them saved; start again with: dla-train fit --run-dir runs/micro" in done.err


def test_ctrl_c_on_a_real_process(start_process, micro_recipe, tmp_path):
    process = start_process(
        "-m", "dla_train", "fit", "--recipe", micro_recipe, "data.workers=1", "training.steps=100000"
    )
    metrics = tmp_path / "runs" / "micro" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not read_rows(metrics):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this step (Ctrl-C again stops at once)" in err
    (step,) = map(int, re.findall(r"stopped; step (\d+) is saved", err))
    assert (tmp_path / "runs" / "micro" / "checkpoints" / f"step-{step:08d}").is_dir()
    assert "Traceback" not in err


def test_nohup_is_respected(told, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done, _ = told(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.code == 0, done.err


def test_a_closed_terminal_saves_the_step(micro_recipe, tmp_path, cache_directory):
    """Whatever is written to the terminal fails from then on, and must not keep the run from its checkpoint."""
    master, terminal = os.openpty()
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "from dla_train.__main__ import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "fit", "--recipe", micro_recipe, "training.steps=100000", "checkpoint.every=null"],
        cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**os.environ, "DLA_TRAIN_CACHE": str(cache_directory), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(terminal)
    run = tmp_path / "runs" / "micro"
    try:
        deadline = time.monotonic() + 120
        while not read_rows(run / "metrics.csv"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            if select.select([master], [], [], 0.01)[0]:
                os.read(master, 10_000)  # a full terminal would keep the run waiting
        os.close(master)
        assert process.wait(60) == 129
    finally:
        process.kill()
        process.wait()
    (saved,) = (run / "checkpoints").glob("step-*")
    assert read_rows(run / "metrics.csv")[-1]["step"] == int(saved.name.removeprefix("step-"))
    assert "told to stop by SIGHUP at step" in (run / "logs" / "run.log").read_text()


def test_ctrl_c_before_the_first_step(cli, micro_recipe, monkeypatch):
    def interrupt(self, trainer, pl_module, stage):
        raise KeyboardInterrupt

    monkeypatch.setattr(StopSignal, "setup", interrupt)
    done = cli("fit", "--recipe", micro_recipe)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "dla-train: interrupted"


def test_in_a_slurm_job_lightning_requeues_nothing(micro_recipe, tmp_path, monkeypatch):
    """Its handler saves wherever the signal lands and calls `scontrol`; only ours may."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    from dla_train.config.catalog import find
    from dla_train.config.load import load
    from dla_train.training.trainer import build_trainer

    for name, value in {"JOB_ID": "7", "NTASKS": "1", "JOB_NAME": "run", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    recipe = load(find(str(micro_recipe))).recipe
    trainer = build_trainer(
        recipe.training, strategy=recipe.strategy, placement=None, callbacks=[], logger=None, folder=tmp_path
    )
    environment = trainer._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue


@pytest.mark.parametrize(
    ("here", "there", "agreed"),
    [
        (None, None, None),
        (None, signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, None, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1),
        (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1),
        (signal.SIGINT, signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGHUP, signal.SIGHUP),
    ],
)
def test_ranks_agree_on_one_signal(here, there, agreed):
    """Whichever rank is asked: the one that received nothing stops, too, and all end with the same exit code."""

    class Strategy:
        def __init__(self):
            self.asked = 0

        def reduce_boolean_decision(self, decision, all):
            assert not all
            self.asked += 1
            order = [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
            others = there is not None if self.asked == 1 else there == order[self.asked - 2]
            return decision or others

    class Trainer:
        strategy = Strategy()

    stop = StopSignal()
    if here is not None:
        stop._note(here, None)
    assert stop.agreed(Trainer()) == agreed  # type: ignore[arg-type]


def test_a_stopped_run_tells_its_batch_script_how_it_ends(cli, micro_recipe, tmp_path, monkeypatch):
    """srun may report another code, of a process that it ended on its way out."""
    said = tmp_path / "exit-code"
    monkeypatch.setenv("DLA_TRAIN_EXIT_CODE_FILE", str(said))
    calls = iter([None, None, signal.SIGUSR1])
    monkeypatch.setattr(StopSignal, "agreed", lambda *_: next(calls))
    assert cli("fit", "--recipe", micro_recipe).code == 138
    assert said.read_text() == "138\n"
    assert (tmp_path / "runs/micro/checkpoints/step-00000002").is_dir()


def test_a_time_budget_ends_the_run_with_validation_checkpoint_and_report(cli, micro_recipe, tmp_path):
    done = cli("fit", "--recipe", micro_recipe, "training.steps=100000", "training.max_minutes=0.02")
    assert done.code == 0, done.err
    rows = read_rows(tmp_path / "runs/micro/metrics.csv")
    last = rows[-1]["step"]
    assert rows[-1]["split"] == "validation"
    assert 1 <= last < 100_000
    assert (tmp_path / f"runs/micro/checkpoints/step-{last:08d}").is_dir()
    assert re.search(rf"\| steps +\| {last:,} of 100,000", done.out)
    assert f"stopped at step {last} of 100000, because training.max_minutes is 0.02; --resume auto goes on" in done.err
