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
def exclusive(target: Path) -> Iterator[bool]:
    """Hold the lock on making `target`; yields whether it is really held (some network file systems have no locks).

    The lock ends with the process, so a killed one leaves nothing that would have to be removed by hand. The empty lock
    file beside `target` stays: removing it while another process waits on it would let two in.

    Raises:
        DataError: the directory of `target` cannot be written.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise DataError(
            f"cannot write the cache directory {path.parent}: {error.strerror} ({error.filename}). "
            f"Make it writable, or set {CACHE_VARIABLE} to another directory."
        ) from error
    with file:
        yield _lock(file.fileno(), target)


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
