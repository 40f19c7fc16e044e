"""The documents of several readers, one after another, each with what must be known once it is encoded."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dla_data.errors import DataError
from dla_data.held_out import HeldOut
from dla_data.readers import START, DocumentReader, Position, ReadingLog
from dla_data.shards.shard import ShardRecord


class Read(NamedTuple):
    """A document that was read and is being encoded.

    reader, position: where it comes from. part: `train` or `validation`. skipped: bad rows met before it, over all
    readers. bytes_read: of the sources, as they lie on disk, by the time it was read.
    """

    reader: int
    position: Position
    part: str
    skipped: int
    bytes_read: int


def nothing_to_read(sources: str) -> DataError:
    """The error for sources without any document."""
    return DataError(f"no documents in {sources}: there is nothing to prepare. Check the sources.")


def all_held_out(documents: int) -> DataError:
    """The error if validation takes all documents and none is left to train on."""
    fell = "the only document" if documents == 1 else f"all {documents:,} documents"
    return DataError(f"{fell} fell to validation. Give more documents, or a smaller validation share.")


def documents_after(
    last: ShardRecord | None,
    readers: Sequence[DocumentReader],
    held_out: HeldOut,
    log: ReadingLog,
    note: Callable[[Read], None],
) -> Iterator[str]:
    """Yield the texts behind the last document of a shard (None: all), and tell `note` about each before it is yielded.

    Readers that are passed over count as read in `log.bytes_read`.
    """
    first = last.reader if last else 0
    log.bytes_read += sum(reader.size or 0 for reader in readers[:first])
    for index in range(first, len(readers)):
        reader = readers[index]
        again = last.position if last and index == first else None
        for position, text in reader.documents(again or START, log):
            if position == again:  # the last document of the shard, read only to find the next one
                continue
            part = "validation" if held_out(text) else "train"
            note(Read(index, position, part, len(log.skipped), log.bytes_read))
            yield text
