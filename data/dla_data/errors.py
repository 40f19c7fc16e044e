"""The one error of this package that a user can cause, so that a caller can tell it from a bug."""

from typing import TypeVar


class DataError(ValueError):
    """Data, a path or a number given by the user cannot be used.

    The message is one complete statement for the user: what was given, what is allowed, what to do.
    """


Item = TypeVar("Item")


def raise_or_return(item: Item | DataError) -> Item:
    """Return the item, or raise the error that a worker sent in its place.

    Workers send errors as items because a `DataLoader` would wrap a raised one in the worker's traceback.
    """
    if isinstance(item, DataError):
        raise item
    return item
