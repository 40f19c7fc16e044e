"""A signal at an awkward moment of a process of its own: nothing is lost, and nothing is done twice."""

import csv
import re
import signal

import pytest

DRIVER = """
import os, signal, sys
from dla_train.cli.main import main
def send(number=signal.{name}): os.kill(os.getpid(), number)
{patch}
sys.exit(main(sys.argv[1:]))
"""

# Each: what sends the signal, which one, the exit code, what is said.
MOMENTS = {
    "validation": (
        """
from dla_train.training.module import LanguageModelTraining as Module
step = Module.validation_step
def validation_step(self, *arguments):
    if self.global_step == 10: send()
    return step(self, *arguments)
Module.validation_step = validation_step
""",
        "SIGTERM",
        143,
        "step 10 is saved",
    ),
    "save": (
        """
from dla_train.checkpoints import store
seal = store._seal
def seal_and_send(folder, step, *rest):
    if step == 8: send()
    seal(folder, step, *rest)
store._seal = seal_and_send
""",
        "SIGUSR1",
        138,
        r"step \d+ is saved",
    ),
    "the writing of a checkpoint beside training": (
        """
from dla_train.checkpoints import state_file
write = state_file._write
def send_and_write(checkpoint, path):
    if checkpoint["global_step"] == 8:
        send()
        import time
        time.sleep(1)
    write(checkpoint, path)
state_file._write = send_and_write
""",
        "SIGTERM",
        143,
        r"step (8|9) is saved",
    ),
    "before the folder has its recipe": (
        """
from dla_train.training import fit
initialize = fit.initialize
def initialize_and_send(*arguments):
    send()
    return initialize(*arguments)
fit.initialize = initialize_and_send
""",
        "SIGUSR1",
        -signal.SIGUSR1,
        "",
    ),
    "the preparation of the text": (
        """
os.environ["DLA_TRAIN_CACHE"] = "cache-of-its-own"
from dla_data import prepare
write = prepare.write_token_file
def write_and_send(*arguments, **options):
    send()
    return write(*arguments, **options)
prepare.write_token_file = write_and_send
""",
        "SIGTERM",
        -signal.SIGTERM,
        "",
    ),
    # As at a time limit: a warning, SIGTERM, and SIGKILL before the step is done.
    "a step longer than the grace time": (
        """
from dla_train.training.module import LanguageModelTraining as Module
step = Module.training_step
def training_step(self, *arguments):
    if self.global_step == 10:
        send()
        send(signal.SIGTERM)
        send(signal.SIGKILL)
    return step(self, *arguments)
Module.training_step = training_step
""",
        "SIGUSR1",
        -signal.SIGKILL,
        "stopping after this step",
    ),
    "just before the first step": (
        """
from dla_train.callbacks.progress import Progress
def send_first(self, trainer, pl_module): send()
Progress.on_train_start = send_first
""",
        "SIGTERM",
        143,
        "stopped before the first step was done",
    ),
}


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [(row["step"], row["split"], row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def straight():
    """Filled by the first test that needs it: the rows of a run without signals."""
    return []


@pytest.mark.xdist_group("signal moments")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_during(moment, cli, start_process, fork_process, micro_recipe, tmp_path, straight, monkeypatch):
    patch, name, code, said = MOMENTS[moment]
    arguments = ["fit", "--recipe", micro_recipe, "training.threads=1", "--resume", "auto"]
    start = start_process if moment == "validation" else fork_process  # one is started in full, imports and all
    process = start("-c", DRIVER.format(name=name, patch=patch), *arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert re.search(said, err)
    assert "Traceback" not in err
    if moment == "the preparation of the text":
        assert (tmp_path / "cache-of-its-own").is_dir()
        monkeypatch.setenv("DLA_TRAIN_CACHE", str(tmp_path / "cache-of-its-own"))
    again = cli(*arguments)
    assert again.code == 0, again.err
    if not straight:
        assert cli(*arguments, "--run-dir", "straight").code == 0
        straight.extend(rows(tmp_path / "straight"))
    assert rows(tmp_path / "runs/micro") == straight
