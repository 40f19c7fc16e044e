"""Who gets the lock of a run folder whose holder may be on a machine that is lost, and what the holder does then."""

import errno
import fcntl
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from dla_train.checkpoints.manifest import RunIdentity
from dla_train.checkpoints.store import CheckpointStore
from dla_train.errors import RunError, UsageError
from dla_train.runs import lock
from dla_train.runs.folder import RunFolder, occupied
from dla_train.training.start import prepare_start

# Makes a checkpoint each time that it reads a line, as a start of Slurm's job 7.
HOLD = """
import os, sys
from pathlib import Path
os.environ.update(SLURM_JOB_ID="7", SLURM_RESTART_COUNT=sys.argv[2])
from dla_train.checkpoints.manifest import RunIdentity
from dla_train.checkpoints.store import CheckpointStore
from dla_train.runs.folder import RunFolder, occupied
folder = RunFolder(Path(sys.argv[1]))
with occupied(folder):
    folder.is_started = True
    store = CheckpointStore(folder.checkpoints, folder.require_held)
    print("held", flush=True)
    for step, line in enumerate(sys.stdin):
        try:
            with store.new(step, RunIdentity(recipe={"model": {}}, data={})):
                pass
            print("saved", flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture
def held(fork_process, tmp_path):
    """The folder, and its holder: the second start of job 7."""
    process = fork_process("-c", HOLD, tmp_path / "run", "1")
    assert process.stdout.readline() == "held\n"
    return RunFolder(tmp_path / "run"), process


@pytest.fixture
def start(monkeypatch):
    """Makes this process part of a job, and the file system quick to know who has ended."""
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.3)

    def be(job, restart):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)

    return be


def save(process):
    process.stdin.write("save\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_the_next_start_of_a_job_takes_over_and_the_lost_one_writes_no_more(held, start, caplog):
    folder, process = held
    assert save(process) == "saved\n"
    start("7", "2")
    lock.require_free(folder.lock, "the run folder")
    with occupied(folder):
        assert "still locked by an earlier start of this job, job 7, process" in caplog.text
        assert f"taken over from job 7, process {process.pid} on {socket.gethostname()}" in caplog.text
        said = save(process)
        assert said.startswith("RunError: the run folder ")
        assert f"run was taken over by job 7, process {os.getpid()} on" in said
        assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000000"], "what was there before"
        folder.require_held()
        store = CheckpointStore(folder.checkpoints, folder.require_held)
        with store.new(1, RunIdentity(recipe={"model": {}}, data={})):
            pass
    assert not list(folder.path.glob(".lock.*"))


@pytest.mark.parametrize(("job", "restart"), [("7", "1"), ("7", "0"), ("8", "2")])
def test_a_step_of_the_same_start_and_another_job_are_refused(held, start, job, restart):
    folder, process = held
    start(job, restart)
    with pytest.raises(UsageError, match="is in use by job 7"), occupied(folder):
        pass
    with pytest.raises(UsageError, match="is in use by job 7"):
        lock.require_free(folder.lock, "the run folder")
    assert save(process) == "saved\n"


def test_a_lock_that_is_given_back_meanwhile_is_not_taken(held, start, monkeypatch, caplog):
    folder, process = held
    start("7", "2")
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 60.0)
    end = threading.Timer(0.2, process.kill)
    end.start()
    before = folder.lock.stat().st_ino
    with occupied(folder):
        assert folder.lock.stat().st_ino == before
    assert "taken over" not in caplog.text
    end.join()


def test_a_holder_on_another_machine_is_named_with_what_can_be_done(held):
    folder, _ = held
    owner = json.loads(folder.lock.read_text())
    folder.lock.write_text(json.dumps({**owner, "host": "node17"}))
    with pytest.raises(UsageError, match=r"on node17 .*If that machine is lost, .* remove .*run/\.lock\."):
        lock.require_free(folder.lock, "the run folder")


def test_a_lock_file_that_a_clean_up_removed_is_made_again(held):
    """A run of months must not end because somebody removes old files."""
    folder, process = held
    folder.lock.unlink()
    assert save(process) == "saved\n"
    with pytest.raises(UsageError, match=f"is in use by job 7, process {process.pid} on"), occupied(folder):
        pass


def test_who_makes_the_file_again_and_is_not_the_first_to_lock_it_stays_without(tmp_path, monkeypatch):
    with occupied(folder := RunFolder(tmp_path)):
        folder.lock.unlink()
        with monkeypatch.context() as late:
            late.setattr(lock, "_lock", lambda *_: False)
            with pytest.raises(RunError, match="was taken over by another process"):
                folder.require_held()
        with pytest.raises(RunError, match="was taken over by another process"):
            folder.require_held()


def test_a_folder_that_is_moved_meanwhile_is_not_made_anew(tmp_path):
    """Half of the run would be in each."""
    folder = RunFolder(tmp_path / "run")
    store = CheckpointStore(folder.checkpoints, folder.require_held)
    with occupied(folder):
        folder.path.rename(moved := tmp_path / "else where")
        expected = f"run was moved to {moved} while .*: --run-dir '{moved}' --resume auto"
        with pytest.raises(RunError, match=expected):
            store.require_room(0)
        with pytest.raises(RunError, match=expected), store.new(1, RunIdentity(recipe={"model": {}}, data={})):
            pass
        folder.path.mkdir(exist_ok=True)  # as another start does
        with pytest.raises(RunError, match=expected):
            folder.require_held()
        moved.rename(tmp_path / "gone")
        (tmp_path / "gone" / ".lock").unlink()
        (tmp_path / "gone").rmdir()
        with pytest.raises(RunError, match="run was removed while this process used it"):
            folder.require_held()


def test_a_lock_file_in_the_place_of_the_own_one_is_another_process(tmp_path):
    folder = RunFolder(tmp_path)
    with occupied(folder):
        folder.require_held()
        folder.lock.rename(tmp_path / "own")
        folder.lock.touch()
        with pytest.raises(RunError, match="was taken over by another process"):
            folder.require_held()
    folder.require_held()


def test_who_lost_the_folder_before_its_run_began_removes_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with occupied(folder):
        lock._put_another(folder.lock)  # as the next start of the job does
        folder.checkpoints.mkdir()
    assert folder.checkpoints.is_dir()
    assert folder.lock.is_file()


def test_who_lost_the_folder_while_the_data_was_prepared_begins_no_run(cli, micro_recipe, monkeypatch):
    """It would cut the metrics of the other one."""

    def prepared_slowly(loaded, folder, *others):
        start = prepare_start(loaded, folder, *others)
        lock._put_another(folder.lock)
        return start

    monkeypatch.setattr("dla_train.training.fit.prepare_start", prepared_slowly)
    done = cli("fit", "--recipe", micro_recipe)
    assert done.code == 1
    assert "the run folder runs/micro was taken over by another process: this process ends" in done.err
    assert [path.name for path in Path("runs/micro").iterdir()] == [".lock"]


def test_a_handle_that_another_machine_has_made_stale_is_a_lock_that_was_taken_over(tmp_path, monkeypatch):
    """So answers NFS where the file was replaced on another machine."""

    def stale(descriptor):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    folder = RunFolder(tmp_path / "run")
    with occupied(folder):
        lock._put_another(folder.lock)
        with monkeypatch.context() as nfs:
            nfs.setattr(os, "fstat", stale)
            with pytest.raises(RunError, match="was taken over by another process"):
                folder.require_held()


def test_who_holds_the_folder_is_on_disk_before_the_machine_can_be_lost(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.pread(descriptor, 1000, 0)))
    with occupied(folder := RunFolder(tmp_path / "run")):
        assert synced == [folder.lock.read_bytes()]
        assert json.loads(synced[0])["pid"] == os.getpid()


def test_a_file_system_without_locks_is_one_to_train_on(tmp_path, monkeypatch, caplog):
    def no_lock(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", no_lock)
    folder = RunFolder(tmp_path / "run")
    with occupied(folder):
        folder.require_held()
    assert "(Function not implemented), for its file system has none: see to it that no other" in caplog.text
    assert caplog.text.count("no lock on") == 1
