"""What the run folder's growing files do when the disk takes less than it is given, or nothing."""

import errno
import os

import pytest

from dla_train.errors import RunError
from dla_train.runs.appended_file import AppendedFile
from dla_train.runs.metrics_file import MetricsFile, read_rows

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_all_is_written_where_the_system_takes_a_few_bytes_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, [], 0)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    file.append({"step": 1, "split": "train", "loss": 1 / 3})
    assert read_rows(path) == [{"step": 1, "split": "train", "loss": 1 / 3}]


@pytest.mark.parametrize(("call", "act"), [("write", lambda file: file.append("x")), ("fsync", AppendedFile.sync)])
def test_a_full_disk_is_said_with_what_to_do(tmp_path, monkeypatch, call, act):
    def refuse(*_):
        raise NO_SPACE

    path = tmp_path / "memory.jsonl"
    path.touch()
    file = AppendedFile(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(RunError) as refused:
            act(file)
    file.close()
    expected = f"{path} could not be written: No space left on device. Make room or permission there, then go on with"
    assert str(refused.value) == f"{expected} --resume auto."


def test_a_run_whose_disk_is_full_ends_with_that_and_goes_on_later(cli, micro_recipe, monkeypatch):
    write = os.write

    def full(descriptor, data):
        if data.startswith(b"6,"):  # the row of step 6
            raise NO_SPACE
        return write(descriptor, data)

    arguments = ["fit", "--recipe", micro_recipe, "training.steps=8"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        done = cli(*arguments)
    assert done.code == 1
    assert "metrics.csv could not be written: No space left on device." in done.err
    assert "fault of dla-train" not in done.err
    done = cli(*arguments, "--resume", "auto")
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err
