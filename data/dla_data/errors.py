"""The one error of this package that a user can cause, so that a caller can tell it from a bug."""


class DataError(ValueError):
    """Data, a path or a number given by the user cannot be used.

    The message is one complete statement for the user: what was given, what is allowed, what to do.
    """
