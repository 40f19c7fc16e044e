"""JSON lines: one object per line, plain or compressed with gzip or Zstandard."""

import json
from collections.abc import Iterator
from pathlib import Path

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.readers.blocks import COMPRESSED_SUFFIXES, DamagedFile, blocks, file_size
from dla_data.readers.reader import START, DocumentReader, Position, ReadingLog, RowProblem, text_of


class JsonLinesReader(DocumentReader):
    """A document per line, in one field of the line's object. Blank lines hold nothing and are passed over.

    A restart seeks to the line in a plain file; a compressed one is decompressed up to it, but not parsed.

    Args:
        path: `.gz` and `.zst` at its end say how it is compressed.
        text_field: the field with the text; the others are not looked at.
    """

    def __init__(self, path: Path, text_field: str = "text") -> None:
        self.name = str(path)
        self.size: int = file_size(path)
        self._path = path
        self._text_field = text_field

    def documents(
        self, start: Position = START, log: ReadingLog | None = None, end: Position | None = None
    ) -> Iterator[tuple[Position, str]]:
        """See `DocumentReader`; rows are lines."""
        log = log or ReadingLog()
        ordinal, row, offset = start
        try:
            for line in _lines(blocks(self._path, offset, log)):
                position = Position(ordinal, row, offset)
                if end is not None and offset >= end.offset:
                    return
                row += 1
                offset += len(line)
                if line.isspace():
                    continue
                try:
                    text = text_of(_parsed(line, position), self._text_field)
                except RowProblem as problem:
                    log.note(f"{self._path}, line {row}", problem)
                    continue
                ordinal += 1
                yield position, text
        except DamagedFile as problem:
            raise DataError(
                f"{self._path} {problem}; {counted(row, 'line')} could be read. Fetch the file again, or leave it out."
            ) from problem

    def ranges(self, most: int) -> list[Position]:
        """See `DocumentReader`: a plain file is cut where lines begin."""
        if self._path.suffix in COMPRESSED_SUFFIXES:
            return [START]
        begins = {0}
        try:
            with self._path.open("rb") as file:
                for number in range(1, most):
                    file.seek(max(0, self.size * number // most - 1))
                    file.readline()
                    begins.add(file.tell())
        except OSError as error:
            raise DataError(f"cannot read {self._path}: {error.strerror}. Make it readable.") from error
        return [Position(offset=begin) for begin in sorted(begins) if begin < max(self.size, 1)]


def _lines(content: Iterator[bytes]) -> Iterator[bytes]:
    """Cut blocks of bytes into lines, each with its line end (the last may have none)."""
    begun: list[bytes] = []
    for block in content:
        first, *others = block.split(b"\n")
        begun.append(first)
        for part in others:
            yield b"".join(begun) + b"\n"
            begun = [part]
    if last := b"".join(begun):
        yield last


def _parsed(line: bytes, position: Position) -> object:
    try:
        # A byte order mark is no part of JSON, but some editors put one before the first line.
        text = line.decode("utf-8-sig" if position.offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise RowProblem(
            f"it is not UTF-8: byte 0x{line[error.start]:02x} at byte {position.offset + error.start:,} of the text "
            f"({error.reason})"
        ) from error
    try:
        return json.loads(text.rstrip("\r\n"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            where = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        else:
            where = "nested too deep" if isinstance(error, RecursionError) else "a number of too many digits"
        hint = "" if line.endswith(b"\n") else ", and the line has no end: the file may be cut off"
        if position.row == 0 and text.lstrip()[:1] == "[":
            hint = ". It begins like one JSON array; JSON lines have one object on each line"
        raise RowProblem(f"it is not JSON ({where}){hint}") from error
