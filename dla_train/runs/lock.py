"""One process at a time in a run folder.

A lock is released when its process ends, and on one machine that is enough. On a network file system, though, the
server keeps the lock of a lost machine: for the lease (90 s with NFSv4), or until that machine is back (NFSv3). Such a
lock may be taken over by the next start of the same Slurm job, because Slurm requeues a job only once it considers its
processes ended, or by a user who removes the file. A process whose lock was taken over, or whose folder was moved or
removed, notices before it makes a checkpoint visible, and ends.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dla_train.errors import RunError, UsageError

_LOGGER = logging.getLogger(__name__)

_WAIT_SECONDS = 120.0
"""How long to wait for the server to notice that a machine is lost: longer than the lease of NFSv4."""
_POLL_SECONDS = 2.0
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks, such as Lustre mounted without `flock`."""


class Lock:
    """The lock file of a run folder, held by this process; `require_held` notices if it was replaced."""

    def __init__(self, path: Path, descriptor: int, what: str) -> None:
        self._path = path
        self._descriptor = descriptor
        self._what = what
        self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)

    def require_held(self) -> None:
        """Refuse to continue if another process has put its own lock file in the place of this one. A file that is only
        gone, removed perhaps by a clean-up of old files, is made again.

        Raises:
            RunError: another process has taken over; says which. Or the folder of the file was moved or removed.
        """
        if self.is_held():
            return
        if self._is_elsewhere():
            raise RunError(f"{self._what} was {self._fate()}")
        if not self._made_again():
            raise RunError(
                f"{self._what} was taken over by {_shown(_owner_of(self._path))}: this process ends, and leaves the "
                "folder to that one. If both were started on purpose, give each a folder of its own (--run-dir)."
            )

    def is_held(self) -> bool:
        """Whether the file that is there is the one that this process has locked."""
        return _is_still(self._path, self._descriptor)

    def sign(self) -> None:
        """Write into the file who holds it."""
        _sign(self._descriptor)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._folder)
        os.close(self._descriptor)

    def _is_elsewhere(self) -> bool:
        """Whether the folder is not where it was, as far as its file system says."""
        try:
            own = os.fstat(self._folder)
        except OSError:  # NFS, of a handle that another machine has made stale
            return False
        try:
            return not os.path.samestat(os.stat(self._path.parent), own)
        except FileNotFoundError:
            return True

    def _fate(self) -> str:
        """What became of the folder, and what to do."""
        try:
            now = os.readlink(f"/proc/self/fd/{self._folder}")
        except OSError:  # there is no such thing, as on macOS
            return "moved or removed while this process used it. If moved, go on there: --run-dir DIR --resume auto."
        if now.endswith(" (deleted)"):
            return "removed while this process used it. To train again, start a run in another folder (--run-dir)."
        return f"moved to {now} while this process used it. Go on there: --run-dir {shlex.quote(now)} --resume auto."

    def _made_again(self) -> bool:
        """Make the lock file again if it is gone; whether this process then holds it."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        if not _lock(descriptor, self._path):  # another process was quicker
            os.close(descriptor)
            return False
        os.close(self._descriptor)
        self._descriptor = descriptor
        self.sign()
        _LOGGER.warning("%s was gone while this process held it: it is there again.", self._path)
        return True


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[Lock]:
    """Hold the lock file `path`; the lock is released when the process ends, however that happens.

    It is a POSIX lock (`lockf`), not `flock`: data loader workers inherit the latter, and a worker that outlives a
    killed trainer by a moment would keep the trainer's successor out.

    Raises:
        UsageError: another process holds it; names that process, its host and its Slurm job.
        OSError: the file cannot be made.
    """
    lock = Lock(path, _locked(path, what), what)
    try:
        lock.sign()
        yield lock
    finally:
        lock.close()


def require_free(path: Path, what: str) -> None:
    """Refuse early what `exclusive` would refuse; neither makes nor changes the lock file.

    Raises:
        UsageError: another process holds it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return
    try:
        if not _lock(descriptor, path) and not _is_earlier_start(_owner(descriptor)):
            raise _in_use(descriptor, path, what)
    finally:
        os.close(descriptor)


def _locked(path: Path, what: str) -> int:
    """A locked descriptor of the lock file that currently is at `path`."""
    until: float | None = None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _lock(descriptor, path):
                if _is_still(path, descriptor):
                    return descriptor
            elif not _is_earlier_start(owner := _owner(descriptor)):
                raise _in_use(descriptor, path, what)
            elif until is None:
                until = time.monotonic() + _WAIT_SECONDS
                _LOGGER.warning(
                    "%s is still locked by an earlier start of this job, %s: waiting up to %.0f s for the file system "
                    "to see that it has ended.",
                    what,
                    _shown(owner),
                    _WAIT_SECONDS,
                )
            elif time.monotonic() > until:
                _LOGGER.warning("%s is taken over from %s, which Slurm has ended.", what, _shown(owner))
                _put_another(path)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if until is not None:
            time.sleep(_POLL_SECONDS)


def _lock(descriptor: int, path: Path) -> bool:
    """Try to lock the file; whether nobody else holds it. Warns if the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # POSIX allows either for "held by somebody else"
            return False
        if error.errno not in _NO_LOCKS:
            raise
        _LOGGER.warning(
            "no lock on %s (%s), for its file system has none: see to it that no other process uses the run folder.",
            path,
            error.strerror,
        )
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the opened file is still the one at `path`; a lock on a removed or replaced file keeps nobody out."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # NFS says the latter of what another machine has replaced
            raise
        return False


def _put_another(path: Path) -> None:
    """Replace the lock file, whose holder is gone, by one that nobody holds."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(fresh, path)
    finally:
        with suppress(FileNotFoundError):
            fresh.unlink()


def _sign(descriptor: int) -> None:
    owner = {
        "job": _slurm_job(),
        "restart": _slurm_restart(),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    os.fsync(descriptor)  # or it stays in this machine for a while, and is lost with it


def _owner(descriptor: int) -> dict[str, Any]:
    """What the holder has written about itself; empty if unreadable."""
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _owner_of(path: Path) -> dict[str, Any]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return {}
    try:
        return _owner(descriptor)
    finally:
        os.close(descriptor)


def _is_earlier_start(owner: dict[str, Any]) -> bool:
    """Whether the holder belongs to an earlier start of this Slurm job, not just to another step of this start."""
    job, restart = owner.get("job"), owner.get("restart")
    return job is not None and job == _slurm_job() and isinstance(restart, int) and restart < _slurm_restart()


def _in_use(descriptor: int, path: Path, what: str) -> UsageError:
    owner = _owner(descriptor)
    elsewhere = (
        f" If that machine is lost, its file system gives the lock back after a minute or two; if it does not, remove "
        f"{path}."
        if owner.get("host", socket.gethostname()) != socket.gethostname()
        else ""
    )
    return UsageError(
        f"{what} is in use by {_shown(owner)}. Wait for it, stop it, or choose another folder with --run-dir."
        f"{elsewhere}"
    )


def _slurm_job() -> str | None:
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return os.environ.get("SLURM_JOB_ID")


def _slurm_restart() -> int:
    """How often Slurm has restarted this job."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def _shown(owner: dict[str, Any]) -> str:
    try:
        job = f"job {owner['job']}, " if owner.get("job") else ""
        return f"{job}process {owner['pid']} on {owner['host']} (since {owner['since']})"
    except KeyError:
        return "another process"
