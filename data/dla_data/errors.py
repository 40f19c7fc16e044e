"""The one error of this package that a user can cause, so that a caller can tell it from a bug."""

import errno
import os
from typing import TypeVar


class DataError(ValueError):
    """Data, a path or a number given by the user cannot be used.

    The message is one complete statement for the user: what was given, what is allowed, what to do.
    """


class Unreadable(DataError):
    """The operating system refuses to read what is there, which says nothing about the data: it may be sound."""


_FULL = {
    errno.ENOMEM: "There is too little memory for it (see `ulimit -v`)",
    errno.EMFILE: "This process has too many files open (see `ulimit -n`)",
    errno.ENFILE: "This machine has too many files open",
    errno.EIO: "Its disk does not answer",
}


def unreadable(path: str | os.PathLike[str], error: OSError) -> Unreadable:
    """The error about a file or directory that could not be read."""
    reason = _FULL.get(error.errno or 0)
    way_out = (
        "Make it readable." if reason is None else f"{reason}; the file may be sound: start again when that is mended."
    )
    return Unreadable(f"cannot read {os.fspath(path)}: {error.strerror}. {way_out}")


Item = TypeVar("Item")


def raise_or_return(item: Item | DataError) -> Item:
    """Return the item, or raise the error that a worker sent in its place.

    Workers send errors as items because a `DataLoader` would wrap a raised one in the worker's traceback.
    """
    if isinstance(item, DataError):
        raise item
    return item
