"""Processes of a preflight that srun has started: it does not end the others where one fails."""

import socket
import subprocess
import sys
import time

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from dla_train.distributed.placement import Placement
from dla_train.preflight import trial
from dla_train.preflight.check import Check
from dla_train.preflight.meeting import FirstHasEnded, Meeting
from dla_train.preflight.trial import Trial

AS_SLURM_DOES = """
import os, sys
rank, port, *arguments = sys.argv[1:]
os.environ |= {
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0",
    "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "preflight", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
}
from dla_train.__main__ import main
sys.exit(main(["preflight", *arguments]))
"""


@pytest.fixture
def start_both(fork_process, micro_recipe):
    """Both of two processes of a preflight in `there`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = ("strategy=ddp", "training.micro_batch=1", "training.threads=1", "--run-dir", "there")
    return lambda: [
        fork_process("-c", AS_SLURM_DOES, rank, port, "--recipe", micro_recipe, *settings) for rank in range(2)
    ]


def test_other_ranks_end_where_the_first_refuses_at_once(start_both, tmp_path):
    (tmp_path / "there" / "first").mkdir(parents=True)
    first, other = start_both()
    _, err = first.communicate(timeout=200)
    assert first.returncode == 2
    assert "there holds the runs of another preflight" in err
    _, err = other.communicate(timeout=30)
    assert (other.returncode, err) == (0, "")


PLACEMENT = Placement(rank=1, local_rank=1, devices=2, nodes=1, address="127.0.0.1", port=1, launcher="Slurm")


@pytest.fixture
def sleeping(monkeypatch, tmp_path):
    """A trial whose runs never end by themselves, and the processes of those that have begun."""
    started = []

    def start(*given, **more):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]))
        return started[-1]

    monkeypatch.setattr(trial, "_start", start)
    return Trial(arguments=[], folder=tmp_path, steps=4, planned_steps=30, placement=PLACEMENT), started


def test_a_run_without_the_first_process_is_not_waited_for(sleeping, monkeypatch):
    monkeypatch.setattr(trial, "_GRACE_SECONDS", 0.3)
    one, started = sleeping
    meeting = Meeting(HashStore())
    meeting.end_runs()
    began = time.monotonic()
    assert trial.accompany(one, meeting) == 0
    assert 0.3 <= time.monotonic() - began < 20
    assert [process.returncode for process in started] == [-15]


def test_a_run_that_fails_while_the_first_process_ends_tells_how(monkeypatch, sleeping):
    one, _ = sleeping
    monkeypatch.setattr(trial, "_start", lambda *given, **more: subprocess.Popen(["bash", "-c", "sleep 0.3; exit 7"]))
    meeting = Meeting(HashStore())
    meeting.end_runs()
    assert trial.accompany(one, meeting) == 7


def test_nothing_is_waited_for_once_the_first_process_has_ended(sleeping):
    one, started = sleeping
    meeting = Meeting(HashStore())
    meeting.end()
    with pytest.raises(FirstHasEnded):
        trial.accompany(one, meeting)
    assert [process.returncode for process in started] == [-15]


def test_what_another_rank_found_is_told_as_it_is():
    meeting = Meeting(HashStore())
    assert meeting.told(1) is None
    found = [Check(what="op", found="d v off", is_right=False)]
    meeting.tell(1, found)
    assert (meeting.told(1), meeting.told(2)) == (found, None)
