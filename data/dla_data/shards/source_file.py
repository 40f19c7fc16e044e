"""Identifies the files that a preparation reads, so that it can tell whether they are the same and what changed."""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dla_data.counted import counted
from dla_data.readers import DocumentReader


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file or shard that is read: its name, and what shows whether it is still the same."""

    name: str
    bytes: int | None
    modified_ns: int | None

    @classmethod
    def of(cls, reader: DocumentReader) -> "SourceFile":
        """What identifies the file of `reader` without reading it."""
        if reader.size is None:
            return cls(name=reader.name, bytes=None, modified_ns=None)
        return cls(name=reader.name, bytes=reader.size, modified_ns=os.stat(reader.name).st_mtime_ns)


def file_changes(before: Sequence[SourceFile], now: Sequence[SourceFile]) -> str:
    """How the files differ, in words: the first difference, and how many more there are."""
    changes = list(_changes(before, now)) or ["their order is another one"]
    more = f" (and {counted(len(changes) - 1, 'more file')})" if len(changes) > 1 else ""
    return f"{changes[0]}{more}"


def _changes(before: Sequence[SourceFile], now: Sequence[SourceFile]) -> Iterator[str]:
    found = {file.name: file for file in now}
    known = {file.name for file in before}
    for file in before:
        if (same := found.get(file.name)) is None:
            yield f"{file.name} is not among the sources any more"
        elif same.bytes != file.bytes:
            yield f"{file.name} has {same.bytes or 0:,} bytes and had {file.bytes or 0:,}"
        elif same.modified_ns != file.modified_ns and file.modified_ns is not None:
            seconds, rest = divmod(file.modified_ns, 10**9)
            yield (
                f"{file.name} has the same size, but was written at another time. If its text is the same, give it its "
                f"time back: touch -d @{seconds}.{rest:09} {shlex.quote(file.name)}"
            )
    yield from (f"{file.name} is new" for file in now if file.name not in known)
