"""Plain text: one file is one document, plain or compressed."""

from collections.abc import Iterator
from pathlib import Path

from dla_data.errors import DataError
from dla_data.readers.blocks import DamagedFile, blocks, file_size
from dla_data.readers.reader import START, DocumentReader, Position, ReadingLog, RowProblem, checked_text


class PlainTextReader(DocumentReader):
    """The one document of a text file in UTF-8. It is held in memory as a whole.

    Args:
        path: `.gz` and `.zst` at its end say how it is compressed.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.size = file_size(path)
        self._path = path

    def documents(
        self, start: Position = START, log: ReadingLog | None = None, end: Position | None = None
    ) -> Iterator[tuple[Position, str]]:
        """See `DocumentReader`: there is one document, at `START`."""
        log = log or ReadingLog()
        try:
            content = b"".join(blocks(self._path, 0, log))
        except DamagedFile as problem:
            raise DataError(f"{self._path} {problem}. Fetch the file again, or leave it out.") from problem
        if start != START:
            return
        try:
            yield START, checked_text(_decoded(content), "the file")
        except RowProblem as problem:
            log.note(str(self._path), problem)


def _decoded(content: bytes) -> str:
    try:
        # Not read_text, which would rewrite line ends. Some editors put a byte order mark first; it is no text.
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RowProblem(
            f"it is not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start:,}, line {line} ({error.reason})"
        ) from error
