"""Readers of files or data sets as the shards of streams; few large files are cut into ranges first."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple

from dla_data.errors import DataError
from dla_data.readers import START, DataSetVersion, DocumentReader, Position, ReadingLog
from dla_data.readers.reader import RowProblem

_LOGGER = logging.getLogger("dla_data")

# With so many shards for each stream, streams differ little in length whatever the shards' sizes.
_SHARDS_PER_STREAM = 8


class _Shard(NamedTuple):
    reader: DocumentReader
    begin: Position
    end: Position | None


class _SpokenLog(ReadingLog):
    """Warns of every skipped row at once, because a streaming run has no end at which to report them."""

    def note(self, place: str, problem: RowProblem) -> None:
        super().note(place, problem)
        _LOGGER.warning("left out: %s: %s", place, problem)


class ReaderText:
    """The documents of `readers` as a `dla_data.streams.source.ShardedText`.

    If there are fewer than eight files for each stream, files that can be read from the middle are cut into ranges, so
    that no stream has to read what belongs to another.

    Args:
        name: for messages and metrics. readers: at least one. streams: that will share them.
        skip_bad: how many bad rows may be left out each time a shard is read; each is named in a warning.

    Raises:
        DataError: a file cannot be read.
    """

    def __init__(self, name: str, readers: Sequence[DocumentReader], streams: int, skip_bad: int = 0) -> None:
        self.name = name
        self._skip_bad = skip_bad
        self._readers = list(readers)
        self._shards = [shard for reader, most in self._shares_of(streams) for shard in _shards(reader, most)]

    def uncut(self) -> "ReaderText":
        """The same text with each file as one shard: it does not depend on the number of streams."""
        whole = copy(self)
        whole._shards = [_Shard(reader, START, None) for reader in self._readers]
        return whole

    @property
    def shards(self) -> int:
        """Files, or ranges of files."""
        return len(self._shards)

    @property
    def files(self) -> int:
        """How many files or shards of a data set there are."""
        return len(self._readers)

    @property
    def bytes(self) -> int | None:
        """Of all files on disk; None where that is not known."""
        sizes = [reader.size for reader in self._readers]
        return None if None in sizes else sum(size for size in sizes if size)

    @property
    def version(self) -> DataSetVersion | None:
        """Of the data set that is read; None for files."""
        return self._readers[0].version if self._readers else None

    def fingerprint(self) -> str:
        """Hash of the files' names and sizes: quick, and enough to notice other text, though not every edit."""
        files = [(Path(reader.name).name, reader.size) for reader in self._readers]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def documents(self, shard: int, start: Sequence[int] | None) -> Iterator[tuple[list[int], str]]:
        """See `ShardedText`; positions are lists of three integers."""
        reader, begin, end = self._shards[shard]
        place = begin if start is None else Position(*start)
        try:
            for position, text in reader.documents(place, _SpokenLog(self._skip_bad), end):
                yield list(position), text
        except DataError as error:
            if not begin.offset:
                raise
            raise DataError(f"{error} (Lines are counted from byte {begin.offset:,} of the file on.)") from error

    def _shares_of(self, streams: int) -> Iterator[tuple[DocumentReader, int]]:
        """Each reader, and into how many ranges it may be cut."""
        wanted = _SHARDS_PER_STREAM * streams
        total = sum(reader.size or 0 for reader in self._readers)
        for reader in self._readers:
            is_cut = len(self._readers) < wanted and reader.size and total
            yield reader, -(-wanted * reader.size // total) if is_cut and reader.size else 1


def _shards(reader: DocumentReader, most: int) -> Iterator[_Shard]:
    begins = reader.ranges(most) if most > 1 else [START]
    for begin, end in zip(begins, [*begins[1:], None], strict=True):
        yield _Shard(reader, begin, end)
