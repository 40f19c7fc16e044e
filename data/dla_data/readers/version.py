"""Which version of a data set is read, so that a later start can tell whether it reads the same one."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataSetVersion:
    """What shows that a data set is still the same, without reading it.

    Attributes:
        revision: the commit of its repository on the hub, 40 hex digits; None for a folder, which has none.
        files: SHA-256 over the names of the split's files below the data set, in the order in which they are read, and
            where there is no revision, their sizes. The same on the hub and in a whole copy of it in the hub's cache.
    """

    revision: str | None
    files: str
