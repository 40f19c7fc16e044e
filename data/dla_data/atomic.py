"""A directory that appears complete or not at all, whatever happens to the process or the machine."""

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dla_data.errors import DataError

_UNFINISHED = ".tmp"


@contextmanager
def new_directory(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory that gets the name `target` when the block ends and is removed if the block raises.

    Everything is on disk before the name appears. Only a killed process leaves files behind: see `remove_leftovers`.

    Args:
        target: the final path; its parents are made.
        replace: whether to replace a directory that has this name when the block ends; otherwise that is an error.

    Raises:
        DataError: `target` exists, or the operating system refuses to write (no permission, no space).
    """
    if not replace and target.exists():
        raise DataError(f"{target} exists already. Remove it or choose another name.")
    unfinished: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _make_unfinished(target)
        yield unfinished
        _flush_tree(unfinished)
        _take_name(unfinished, target, replace)
        _flush(target.parent)
    except OSError as error:
        raise DataError(
            f"cannot write {target}: {_reason(error)} ({error.filename or unfinished or target.parent}). "
            "Make room or permission there, or choose another directory."
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """Write `path` so that it holds its old content or all of `text`, whatever happens.

    Raises:
        DataError: the operating system refuses to write.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        _flush(unfinished)
        os.replace(unfinished, path)
        _flush(path.parent)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise DataError(
            f"cannot write {path}: {error.strerror}. Make room or permission there, or choose another directory."
        ) from error


def _reason(error: OSError) -> str:
    # If a file stands where a directory should, mkdir says "File exists", which is misleading.
    return "not a directory" if isinstance(error, FileExistsError) else error.strerror or str(error)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes left of `target`; call it only while nobody else can be writing it."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*{_UNFINISHED}"):
        shutil.rmtree(leftover, ignore_errors=True)


def _make_unfinished(target: Path) -> Path:
    """Make an empty hidden directory beside `target`."""
    # Not with mkdtemp, whose directories only the owner can enter: caches are shared.
    path = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    path.mkdir()
    return path


def _take_name(unfinished: Path, target: Path, replace: bool) -> None:
    """Rename, moving an occupant aside; repeated because another process may take the name in between."""
    while True:
        try:
            os.rename(unfinished, target)
            return
        except OSError as error:
            if not replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        aside = _make_unfinished(target)
        try:
            with suppress(FileNotFoundError):
                os.rename(target, aside / "replaced")
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _flush_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            _flush(Path(folder, name))
        _flush(Path(folder))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
