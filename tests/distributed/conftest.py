"""Runs of several processes through the command line, and their losses."""

import time

import pytest

from dla_train.runs.metrics_file import read_rows

# Few, with accumulation where ranks are few; a norm of 0.5 clips every step.
SMALL = (
    "training.steps=8",
    "training.threads=1",
    "training.micro_batch=1",
    "training.clip=0.5",
    "training.validate_every=4",
    "schedule.warmup=2",
    "report.prompt=null",
    "report.bigram=false",
)


def numbers(folder, split="train", name="loss"):
    """The column `name` of a run's metrics, by step."""
    return {row["step"]: row[name] for row in read_rows(folder / "metrics.csv") if row["split"] == split}


@pytest.fixture
def fit_arguments(micro_recipe):
    """Arguments of `dla-train` for a run in `name`."""

    def arguments(name, *settings):
        return ["fit", "--recipe", str(micro_recipe), "--run-dir", name, *SMALL, *settings]

    return arguments


@pytest.fixture
def launch(start_process):
    """Run `dla-train ARGUMENTS` in processes of its own, by itself or by torchrun; returns exit code and stderr."""

    def run(arguments, torchrun=0, kill=None, timeout=240):
        command = ["-m", "dla_train", *arguments]
        if torchrun:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}", *command]
        process = start_process(*command)
        if kill is not None:
            kill(process)
        _, err = process.communicate(timeout=timeout)
        return process.returncode, err

    return run


@pytest.fixture
def wait_for_step(tmp_path):
    """Wait until a step of the run in `name` is done, then return the ids of its further ranks."""

    def wait(process, name, step):
        deadline = time.monotonic() + 200
        while step not in numbers(tmp_path / name):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "the run does not get there"
            time.sleep(0.02)
        return children(process.pid)

    return wait


def children(pid):
    """Processes that `pid` started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
