"""One process at a time in a run folder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dla_train.errors import UsageError


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`; it goes with the process, however that ends.

    A POSIX lock (`lockf`), not `flock`: data loader workers inherit the latter, and one that outlives a killed
    trainer by a moment would keep its successor out.

    Raises:
        UsageError: another process holds it; names that process, its host and its Slurm job.
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, what)
        owner = {
            "job": _slurm_job(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def require_free(path: Path, what: str) -> None:
    """Refuse early what `exclusive` would refuse; leaves the lock file as it is, or absent.

    Raises:
        UsageError: another process holds it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return
    try:
        _lock(descriptor, what)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, what: str) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX allows either for "held by somebody else"
        raise UsageError(
            f"{what} is in use by {_holder(descriptor)}. Wait for it, stop it, or choose another folder with --run-dir."
        ) from error


def _slurm_job() -> str | None:
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return os.environ.get("SLURM_JOB_ID")


def _holder(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        job = f"job {owner['job']}, " if owner.get("job") else ""
        return f"{job}process {owner['pid']} on {owner['host']} (since {owner['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
