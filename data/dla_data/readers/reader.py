"""What every reader of documents promises: where a document stands, how to begin there again, what bad rows do."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dla_data.errors import DataError
from dla_data.readers.version import DataSetVersion

_NAMED_IN_MESSAGE = 3  # bad rows shown when there are too many of them


class Position(NamedTuple):
    """Where a document stands in its reader: three integers, which JSON keeps as a list (`Position(*list)`).

    ordinal: documents before it.
    row: lines (or rows of a table) before it; blank lines and skipped bad rows count too.
    offset: where its line begins, in bytes of the uncompressed text; 0 where the format is not read by lines.
    """

    ordinal: int = 0
    row: int = 0
    offset: int = 0


START = Position()


class BadRow(NamedTuple):
    """A row that was left out: where it stands and why, in words."""

    place: str
    reason: str


class RowProblem(Exception):
    """One row cannot be used; the reader adds its place and asks its `ReadingLog` whether to go on."""


class TooManyBadRows(DataError):
    """There are more bad rows than may be skipped; with a higher limit, reading can go on."""


@dataclass
class ReadingLog:
    """What reading has met so far; one may serve several readers in turn.

    skip_bad: how many bad rows may be left out, over all the readers that this log is given to.
    skipped: the ones left out so far.
    bytes_read: how much of the files, as they lie on disk, has been read or passed over.
    """

    skip_bad: int = 0
    skipped: list[BadRow] = field(default_factory=list)
    bytes_read: int = 0

    def note(self, place: str, problem: RowProblem) -> None:
        """Note a bad row.

        Raises:
            TooManyBadRows: no more of them are allowed.
        """
        if self.skip_bad == 0:
            raise TooManyBadRows(
                f"{place}: {problem}. Mend it, or allow up to N such rows to be left out: --skip-bad N, or "
                "skip_bad: N in a recipe."
            )
        if len(self.skipped) >= self.skip_bad:
            first = "; ".join(f"{row.place}: {row.reason}" for row in self.skipped[:_NAMED_IN_MESSAGE])
            raise TooManyBadRows(
                f"{place}: {problem}. It is bad row number {len(self.skipped) + 1}, and skip_bad allows "
                f"{self.skip_bad} (the first: {first}). Mend them, or allow more."
            )
        self.skipped.append(BadRow(place, str(problem)))


class DocumentReader(ABC):
    """The documents of one file, or of one shard of a data set; always the same ones in the same order.

    name: what messages call it.
    size: its length in bytes on disk, or None where that is not known.
    version: of the data set that it is a shard of; None for a file.
    """

    name: str
    size: int | None
    version: DataSetVersion | None = None

    @abstractmethod
    def documents(
        self, start: Position = START, log: ReadingLog | None = None, end: Position | None = None
    ) -> Iterator[tuple[Position, str]]:
        """Yield each document with its position, from the document at `start` on.

        Reading again from a position that was yielded gives that document and all that follow it, with the same
        positions. What lies before is not parsed, and not even read where the format allows that.

        Args:
            start: a position that this reader has yielded. log: notes bad rows and bytes; None allows no bad row.
            end: where the next range begins (`ranges`), of which nothing is read: a bad row there is not noted. None
                reads to the end of the file.
        Raises:
            DataError: the file is damaged or cannot be read, or too many of its rows are bad. Names file and line.
        """

    def ranges(self, most: int) -> list[Position]:
        """The starts of at most `most` ranges of about equal size, each readable without those before it.

        The first is `START`, and a range ends where the next begins. Within a range, positions count documents (and
        lines of text) from its beginning. A format that must be read from the front is one range.

        Raises:
            DataError: the file cannot be read.
        """
        return [START]


def text_of(row: object, text_field: str) -> str:
    """The text of one row.

    Raises:
        RowProblem: the row has no such field, or the field holds no text.
    """
    if not isinstance(row, dict):
        raise RowProblem(f"it holds {_kind(row)}, not an object with fields")
    if text_field not in row:
        present = ", ".join(repr(str(name)) for name in list(row)[:20]) or "none"
        raise RowProblem(
            f"it has no field {text_field!r}. Fields present: {present}; --text-field, or text_field in a "
            "recipe, names another one"
        )
    return checked_text(row[text_field], f"field {text_field!r}")


def checked_text(text: object, what: str) -> str:
    """`text`, if it is one.

    Raises:
        RowProblem: not a string, nothing but white space, or not valid Unicode.
    """
    if not isinstance(text, str):
        raise RowProblem(f"{what} holds {_kind(text)}, not a text")
    if not text or text.isspace():
        raise RowProblem(f"{what} is an empty document")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise RowProblem(f"{what} is not valid Unicode at character {error.start:,} ({error.reason})") from error
    return text


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bytes: "bytes",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
