"""The one error of this package that a user can cause, so that a caller can tell it from a bug."""

from typing import TypeVar


class DataError(ValueError):
    """Data, a path or a number given by the user cannot be used.

    The message is one complete statement for the user: what was given, what is allowed, what to do.
    """


Item = TypeVar("Item")


def raise_or_return(item: Item | DataError) -> Item:
    """The item, or the error that a worker sent in its place, which a `DataLoader` would wrap in a traceback."""
    if isinstance(item, DataError):
        raise item
    return item
