"""Where the cache is, and that only one process at a time makes an entry."""

import errno
import fcntl
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dla_data.cache import cache_root, exclusive, lock_of
from dla_data.errors import DataError


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/own", "/shared", "/own"),
        ("", "/shared", "/shared/dla-train"),
        (None, "/shared", "/shared/dla-train"),
        (None, "relative", "/home/me/.cache/dla-train"),
        ("", "", "/home/me/.cache/dla-train"),
        (None, None, "/home/me/.cache/dla-train"),
        ("~/mine", None, "/home/me/mine"),
    ],
)
def test_precedence(monkeypatch: pytest.MonkeyPatch, own: str | None, shared: str | None, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("DLA_TRAIN_CACHE", own), ("XDG_CACHE_HOME", shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DLA_TRAIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(DataError, match="Set DLA_TRAIN_CACHE"):
        cache_root()


def test_the_second_waits_for_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dla_data")
    events: list[str] = []

    def second() -> None:
        with exclusive(tmp_path / "entry"):
            events.append("second in")

    with exclusive(tmp_path / "entry") as held:
        assert held
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.3)
        events.append("first out")
    thread.join(timeout=10)
    assert events == ["first out", "second in"]
    assert "waiting for another process" in caplog.text


def test_a_lock_file_that_its_holder_removes_lets_no_two_in(tmp_path: Path) -> None:
    target = tmp_path / "new" / "entry"
    events: list[str] = []

    def later(name: str) -> None:
        with exclusive(target) as held:
            assert held
            events.append(f"{name} in")
            time.sleep(0.05)
            events.append(f"{name} out")
            lock_of(target).unlink()
            with suppress(OSError):
                target.parent.rmdir()

    threads = [threading.Thread(target=later, args=(name,)) for name in "abcd"]
    with exclusive(target):
        for thread in threads:
            thread.start()
        threads[0].join(timeout=0.2)
        assert not events
        lock_of(target).unlink()
        target.parent.rmdir()
    for thread in threads:
        thread.join(timeout=10)
    assert [event[:1] for event in events[::2]] == [event[:1] for event in events[1::2]]
    assert sorted(events[::2]) == ["a in", "b in", "c in", "d in"]
    assert not target.parent.exists()


def test_a_place_that_cannot_be_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with (
        pytest.raises(DataError, match=r"cannot write the output directory x: No such file .* or choose another one\."),
        exclusive(Path("x/prepare"), "the output directory", "choose another one"),
    ):
        pytest.fail("went in")


def test_entries_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with exclusive(tmp_path / "one"), exclusive(tmp_path / "two") as held:
        assert held


def test_file_systems_without_locks_are_worked_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    with exclusive(tmp_path / "entry") as held:
        assert not held
