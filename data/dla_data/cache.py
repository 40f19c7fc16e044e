"""Where prepared corpora are kept, and how processes that want the same one take turns."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dla_data.errors import DataError

_LOGGER = logging.getLogger("dla_data")

CACHE_VARIABLE = "DLA_TRAIN_CACHE"

_MOST_MISSING = 1000  # attempts to lock a file in a directory that other processes keep removing


def cache_root() -> Path:
    """Return $DLA_TRAIN_CACHE, else $XDG_CACHE_HOME/dla-train, else ~/.cache/dla-train; empty counts as unset.

    Raises:
        DataError: no variable is set and there is no home directory.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # its specification: ignore a relative path
        return Path(shared) / "dla-train"
    try:
        return Path.home() / ".cache" / "dla-train"
    except RuntimeError as error:
        raise DataError(f"no home directory to keep the cache in. Set {CACHE_VARIABLE} to a directory.") from error


@contextmanager
def exclusive(
    target: Path, directory: str = "the cache directory", way_out: str = f"set {CACHE_VARIABLE} to another directory"
) -> Iterator[bool]:
    """Hold the lock on making `target`; yields whether it is really held (some network file systems have no locks).

    The lock ends with the process, so after a kill nothing has to be removed by hand. The empty lock file beside
    `target` stays. The holder of the lock may remove that file and its directory: a process that waited for the lock
    notices it and starts over.

    Args:
        target: what is made. directory, way_out: how errors name its directory, and what they advise.
    Raises:
        DataError: the directory of `target` cannot be written.
    """
    path = lock_of(target)
    try:
        descriptor, locked = _opened_and_locked(path, target)
    except OSError as error:
        raise DataError(
            f"cannot write {directory} {path.parent}: {error.strerror} ({error.filename}). "
            f"Make it writable, or {way_out}."
        ) from error
    try:
        yield locked
    finally:
        os.close(descriptor)


def lock_of(target: Path) -> Path:
    """The file to lock while making `target`."""
    return target.with_name(f".{target.name}.lock")


def _opened_and_locked(path: Path, target: Path) -> tuple[int, bool]:
    """A descriptor of the current lock file, and whether it could be locked."""
    missing = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # another process removed the directory in between, or there is no place for it
            missing += 1
            if missing == _MOST_MISSING:
                raise
            continue
        try:
            locked = _lock(descriptor, target)
            if not locked or _is_still(path, descriptor):
                return descriptor, locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the opened file; if it was removed since, others would lock a new file instead."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, target: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _LOGGER.info("waiting for another process that is preparing %s", target)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        _LOGGER.warning("no lock on %s (%s): another process may prepare it at the same time", target, error.strerror)
        return False
    return True
