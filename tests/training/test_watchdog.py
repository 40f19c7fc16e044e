"""A run that hangs ends by itself and says where it hung."""

import faulthandler
import signal
import time
from unittest.mock import Mock

import pytest

from dla_train.callbacks.watchdog import EXIT_CODE, Watchdog
from dla_train.runs.metrics_file import read_rows
from dla_train.training.module import LanguageModelTraining

HANG = """
import ctypes, os, sys, threading
os.environ["DLA_TRAIN_EXIT_CODE_FILE"] = "said"
from dla_train.cli.main import main
from dla_train.training.module import LanguageModelTraining as Module
step = Module.training_step
def hang_here(self, *arguments):
    if self.global_step == 6: {hang}
    return step(self, *arguments)
Module.training_step = hang_here
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("hang", "code"),
    [
        ("threading.Event().wait()", EXIT_CODE),
        # It holds the interpreter's lock: no other thread of Python runs.
        pytest.param("ctypes.PyDLL(None).sleep(600)", 1, marks=pytest.mark.slow),
    ],
)
def test_a_hanging_run_writes_its_stacks_and_ends(cli, fork_process, micro_recipe, tmp_path, hang, code):
    arguments = ["fit", "--recipe", micro_recipe, "watchdog.minutes=0.05", "--resume", "auto"]
    process = fork_process("-c", HANG.format(hang=hang), *arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    if code == EXIT_CODE:
        path = tmp_path / "runs/micro/logs/hang-rank-0.txt"
        assert "no step for 0.05 min after step 6; the stacks are in runs/micro/logs/hang-rank-0.txt" in err
        assert "rank 0 on" in path.read_text()
        assert (tmp_path / "said").read_text() == "75\n", "whatever srun makes of processes that hang with it"
        err = path.read_text()
    assert "in hang_here" in err
    assert "in _watch" in err, "all threads"
    done = cli(*arguments)
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err


def test_a_run_that_works_is_left_alone(cli, micro_recipe, monkeypatch):
    """Slower than the limit as a whole, never between two micro-batches."""
    step = LanguageModelTraining.validation_step

    def slow(self, *arguments):
        time.sleep(1.2)
        return step(self, *arguments)

    monkeypatch.setattr(LanguageModelTraining, "validation_step", slow)
    settings = ["training.steps=4", "training.micro_batch=1", "training.validate_every=null", "watchdog.minutes=0.05"]
    done = cli("fit", "--recipe", micro_recipe, *settings)
    assert done.code == 0, done.err


def test_a_run_that_was_stopped_for_longer_than_the_limit_has_not_hung(fork_process, micro_recipe, tmp_path):
    """Up to twice the limit, as is documented."""
    arguments = ["fit", "--recipe", micro_recipe, "watchdog.minutes=0.2", "training.steps=60"]
    process = fork_process("-m", "dla_train", *arguments)
    metrics = tmp_path / "runs/micro/metrics.csv"
    while not read_rows(metrics):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    time.sleep(15)
    assert len(read_rows(metrics)) < 60
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_the_timer_is_set_before_training(monkeypatch, tmp_path):
    """Code that holds the interpreter's lock from the first step on lets no thread set it."""
    timers = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: timers.append(seconds))
    watchdog = Watchdog(10, tmp_path)  # whose thread first looks after 5 s
    watchdog.setup(Mock(), Mock(), "fit")
    assert timers == [1200]
    watchdog.teardown(Mock(), Mock(), "fit")


def test_minutes_must_be_positive(cli, micro_recipe):
    done = cli("fit", "--recipe", micro_recipe, "watchdog.minutes=0")
    assert done.code == 2
    assert "watchdog.minutes is 0" in done.err
    assert "it must be above 0, or null" in done.err
