"""A directory appears complete or not at all."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dla_data.atomic import new_directory, remove_leftovers
from dla_data.errors import DataError


def test_the_name_appears_at_the_end_with_everything_in_it(tmp_path: Path) -> None:
    target = tmp_path / "a" / "target"
    with new_directory(target) as directory:
        (directory / "file").write_text("text")
        assert not target.exists()
        assert directory.parent == target.parent  # the same file system: renaming is one operation
    assert (target / "file").read_text() == "text"
    assert os.listdir(target.parent) == ["target"]


def test_files_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda number: (events.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number))
    )
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("rename"), rename(old, new)))
    with new_directory(tmp_path / "target") as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "file").write_text("text")
    flushed = [str(directory / "sub" / "file"), str(directory / "sub"), str(directory)]
    assert events == [*flushed, "rename", str(tmp_path)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_nothing_and_the_old_directory_alone(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "target"
    with new_directory(target) as directory:
        (directory / "old").touch()
    expected = pytest.raises(error)
    with expected, new_directory(target, replace=True) as directory:
        (directory / "new").touch()
        raise error
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(target) == ["old"]


def test_a_killed_process_leaves_only_what_remove_leftovers_finds(tmp_path: Path) -> None:
    target = tmp_path / "tar[g]et"  # not to be taken for a pattern
    program = """
        import os, signal, sys
        from pathlib import Path
        from dla_data.atomic import new_directory
        with new_directory(Path(sys.argv[1])) as directory:
            (directory / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(target)], check=False)
    assert done.returncode == -9
    assert not target.exists()
    assert len(os.listdir(tmp_path)) == 1
    (tmp_path / ".other.0123.tmp").mkdir()
    remove_leftovers(target)
    assert os.listdir(tmp_path) == [".other.0123.tmp"]


def test_replacing_and_refusing_to(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in ("one", "two"):
        with new_directory(target, replace=True) as directory:
            (directory / content).touch()
    assert os.listdir(target) == ["two"]
    with pytest.raises(DataError, match="exists already"), new_directory(target):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["target"]


def test_losing_a_race_for_the_name(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with new_directory(target, replace=True) as late:
        with new_directory(target, replace=True) as early:
            (early / "early").touch()
        (late / "late").touch()
    assert os.listdir(target) == ["late"]
    assert os.listdir(tmp_path) == ["target"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expected = pytest.raises(DataError, match=r"cannot write .*/file/target: not a directory .*Make room")
    with expected, new_directory(tmp_path / "file" / "target"):
        pytest.fail("the block must not run")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    expected = pytest.raises(DataError, match=r"cannot write .*target: No space left.*Make room")
    with expected, new_directory(tmp_path / "target") as directory:
        (directory / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []
