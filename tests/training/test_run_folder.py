import os
import socket
from pathlib import Path

import pytest

from dla_train.errors import UsageError
from dla_train.runs.folder import RunFolder, occupied

HOLD = """
import sys
from pathlib import Path
from dla_train.runs.folder import RunFolder, occupied
with occupied(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    if "fork" in sys.argv and __import__("os").fork() == 0:
        __import__("time").sleep(60)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_by_name_of_the_first(fork_process, tmp_path):
    folder = tmp_path / "run"
    process = fork_process("-c", HOLD, folder)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UsageError) as error, occupied(RunFolder(folder)):
        pass
    assert f"in use by process {process.pid} on {socket.gethostname()} (since 20" in str(error.value)
    assert folder.is_dir(), "the folder of the other one stays"
    process.kill()
    process.wait()


def test_the_lock_goes_with_its_process_even_if_a_child_lives_on(fork_process, tmp_path):
    """A killed trainer's data loader workers outlive it by a moment."""
    folder = tmp_path / "run"
    process = fork_process("-c", HOLD, folder, "fork")
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with occupied(RunFolder(folder)):
        pass


def test_a_folder_in_which_no_run_starts_leaves_no_trace(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b" / "c")
    with occupied(folder):
        assert folder.path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with occupied(RunFolder(tmp_path / "a" / "b")):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    with occupied(RunFolder(tmp_path / "a")):
        pass
    assert list((tmp_path / "a").iterdir()) == []


def test_a_started_run_stays(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with occupied(folder):
        folder.is_started = True
        folder.recipe.write_text("seed: 0")
    assert folder.is_run()
    with occupied(RunFolder(tmp_path / "run")):
        pass
    assert folder.is_run()


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty and holds no run of dla-train"), occupied(RunFolder(tmp_path)):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"the run folder .*/file is a file"), occupied(RunFolder(tmp_path / "file")):
        pass
    with pytest.raises(UsageError, match="Not a directory"), occupied(RunFolder(tmp_path / "file" / "run")):
        pass
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"), occupied(RunFolder(tmp_path / "run")):
        pass


def test_a_place_where_nobody_may_write_is_named():
    folder = RunFolder(Path("/proc/nothing/run"))
    with pytest.raises(UsageError, match="cannot write the run folder /proc/nothing/run"), occupied(folder):
        pass


def test_a_start_that_failed_and_one_that_was_refused_leave_a_folder_that_can_be_used(cli, micro_recipe):
    folder = Path("tried")
    (folder / "logs").mkdir(parents=True)  # of a start that ended before it wrote a recipe
    (folder / ".lock").touch()
    fit = ["fit", "--recipe", micro_recipe, "--run-dir", folder, "training.steps=4"]
    assert cli(*fit, "data.window=10000000").code == 2
    done = cli(*fit)
    assert done.code == 0, done.err
