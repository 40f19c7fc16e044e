"""Runs of several processes through the command line, and their losses."""

import shutil
import socket
import time

import pytest

from dla_train.distributed.placement import CHILD
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

ON_TWO_NODES = """
import os
place, ranks, port = os.environ.pop("DLA_TRAIN_RANKS").split()
os.environ |= {
    "TORCHELASTIC_RUN_ID": "x", "RANK": place, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(int(place) % 2),
}
"""
"""As torchrun starts four ranks on two nodes."""


def numbers(folder, split="train", name="loss"):
    """The column `name` of a run's metrics, by step."""
    return {row["step"]: row[name] for row in read_rows(folder / "metrics.csv") if row["split"] == split}


def require_equal(folder, expected, rel=1e-5):
    """Sums in another order: float32 has 1e-7 per operation, of which a step makes many."""
    for split, name in (("train", "loss"), ("train", "grad_norm"), ("validation", "loss")):
        assert numbers(folder, split, name) == pytest.approx(numbers(expected, split, name), rel=rel), (split, name)


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


RANK = """\
import sys
rank = {rank}
{before}
from dla_train.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def forked_ranks(fork_process, tmp_path):
    """`run(ranks, arguments, before)` returns exit codes by rank, and the output of rank 0, of `dla-train ARGUMENTS`;
    `before` is code that each rank runs first, and may ask which `rank` it is."""

    def run(ranks, arguments, before=""):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(ranks):
            place = {CHILD: f"{rank} {ranks} {port}"} if ranks > 1 else {}
            with (tmp_path / f"said-by-{rank}").open("w") as said:
                code = RANK.format(rank=rank, before=before)
                streams = {"stdout": said.fileno(), "stderr": said.fileno()}
                processes.append(fork_process("-c", code, *arguments, **streams, DS_ACCELERATOR="cpu", **place))
        return _waited_for(processes), (tmp_path / "said-by-0").read_text()

    return run


def _waited_for(processes):
    """Exit codes; as launchers do, the others are ended soon after one has failed."""
    deadline = None
    while None in (codes := [process.poll() for process in processes]):
        if deadline is None and any(codes):
            deadline = time.monotonic() + 20
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.02)
    return codes


@pytest.fixture
def fit_on(forked_ranks, fit_arguments):
    """Train on so many ranks in the run folder `name`; returns what rank 0 said."""

    def run(ranks, name, *settings, before=""):
        codes, err = forked_ranks(ranks, fit_arguments(name, *settings), before)
        assert not any(codes), err
        return err

    return run


@pytest.fixture
def at_step_4(tmp_path):
    """Copy the run `name` as it was after step 4, its newest checkpoint, to `copy`."""

    def make(name, copy):
        shutil.copytree(tmp_path / name, tmp_path / copy)
        shutil.rmtree(tmp_path / copy / "checkpoints" / "step-00000008")
        for left in ("report.md", ".lock"):
            (tmp_path / copy / left).unlink(missing_ok=True)

    return make
