"""Which part of a source each stream reads, epoch by epoch.

A part is a shard, or where there are too few shards for all streams, every `cut`-th document of one. Each epoch has its
own order of all parts, and stream j of S reads the parts at j, j + S, j + 2 S and so on of that order: every document
belongs to exactly one stream in each epoch. Nothing else is shuffled, because a buffer of shuffled documents could not
be brought back from a few integers.
"""

from typing import NamedTuple

from dla_data.errors import DataError
from dla_data.order import WindowOrder

# A stream with fewer parts than others finishes them earlier and begins its next epoch while the others still read.
_UNEVEN = 1.125


class Part(NamedTuple):
    """The documents of `shard` whose ordinal is `remainder` modulo the `cut` of the parts."""

    shard: int
    remainder: int


class StreamParts:
    """Parts of one source.

    Args:
        shards: of the source. streams: that share it. seed: of the orders, 0 <= seed < 2^64.
    Attributes:
        cut: into how many parts each shard is cut: the smallest number that gives all streams about equally many.

    Raises:
        DataError: an argument out of range.
    """

    def __init__(self, shards: int, streams: int, seed: int) -> None:
        if min(shards, streams) < 1:
            raise DataError(f"{shards} shards for {streams} streams: there must be at least 1 of each.")
        self.streams = streams
        self.cut = 1
        while not _is_even(shards * self.cut, streams):
            self.cut += 1
        self.parts = shards * self.cut
        self._order = WindowOrder(self.parts, seed)

    def part(self, stream: int, epoch: int, ordinal: int) -> Part | None:
        """The part that `stream` reads as number `ordinal` in `epoch` (all from 0); None after its last one."""
        place = stream + ordinal * self.streams
        if place >= self.parts:
            return None
        return Part(*divmod(self._order.window(epoch * self.parts + place), self.cut))


def _is_even(parts: int, streams: int) -> bool:
    """Whether every stream has a part, and no stream has many more than the mean."""
    most = -(-parts // streams)
    return parts >= streams and most * streams <= _UNEVEN * parts
