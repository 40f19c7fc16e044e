"""What a stream reads from: text in numbered shards, each of which can be read from any earlier position."""

from collections.abc import Iterator
from typing import Any, Protocol

Position = Any
"""Where a document begins within its shard: whatever the reader needs to find it again, as plain JSON values."""


class ShardedText(Protocol):
    """Documents in shards, each shard always the same documents in the same order."""

    @property
    def name(self) -> str:
        """What messages and metrics call it."""
        ...

    @property
    def shards(self) -> int:
        """How many shards there are, at least one."""
        ...

    def documents(self, shard: int, start: Position | None) -> Iterator[tuple[Position, str]]:
        """Yield the documents of `shard`, each with the position that begins with it.

        `start` None begins with the first document. A position yielded earlier begins with its document again, without
        reading what lies before if the format allows that.

        Raises:
            DataError: the text cannot be read; names file and line or row.
        """
        ...
