"""Parquet files: a document per row, row group by row group."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.readers.blocks import file_size
from dla_data.readers.reader import START, DocumentReader, Position, ReadingLog, RowProblem, checked_text

_PAGE_BYTES = 1 << 20
_ROWS_AT_A_TIME = 64  # long documents: a few dozen may be hundreds of megabytes
# Errors that a damaged file causes: no footer, a wrong footer, pages that do not decompress.
_DAMAGE = (pyarrow.ArrowException, OSError, ValueError)


class ParquetReader(DocumentReader):
    """A document per row, in one column; the others are not read.

    A restart begins at the row group that holds the row.

    Args:
        path: the file. text_field: the column with the text.
    """

    def __init__(self, path: Path, text_field: str = "text") -> None:
        self.name = str(path)
        self.size = file_size(path)
        self._path = path
        self._text_field = text_field

    def documents(
        self, start: Position = START, log: ReadingLog | None = None, end: Position | None = None
    ) -> Iterator[tuple[Position, str]]:
        """See `DocumentReader`; messages count rows from 0, as tables do."""
        log = log or ReadingLog()
        ordinal, row, _ = start
        for group, first, values in self._values(row, log):
            for row, value in enumerate(values, first):
                if end is not None and row >= end.row:
                    return
                try:
                    text = checked_text(_decoded(value), f"column {self._text_field!r}")
                except RowProblem as problem:
                    log.note(f"{self._path}, row {row} (row group {group})", problem)
                    continue
                yield Position(ordinal, row), text
                ordinal += 1

    def ranges(self, most: int) -> list[Position]:
        """See `DocumentReader`: a file is cut between row groups."""
        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except _DAMAGE as error:
            raise DataError(
                f"{self._path} is damaged or not a Parquet file ({_reason(error)}). Fetch it again, or leave it out."
            ) from error
        begins = [0, *itertools.accumulate(groups)][: len(groups)]
        most = max(min(most, len(groups)), 1)
        return [Position(row=row) for row in sorted({0, *(begins[len(groups) * n // most] for n in range(1, most))})]

    def _values(self, start_row: int, log: ReadingLog) -> Iterator[tuple[int, int, list[object]]]:
        """(row group, number of the first row, values) from `start_row` on, a few rows at a time."""
        row = 0
        try:
            # Page by page: without these, a whole row group is read at once, and many streams may have one open.
            with pyarrow.parquet.ParquetFile(self._path, buffer_size=_PAGE_BYTES, pre_buffer=False) as file:
                self._require_column(file.schema_arrow)
                for group in range(file.num_row_groups):
                    about = file.metadata.row_group(group)
                    log.bytes_read += sum(
                        about.column(column).total_compressed_size for column in range(about.num_columns)
                    )
                    if row + about.num_rows <= start_row:
                        row += about.num_rows
                        continue
                    batches = file.iter_batches(
                        _ROWS_AT_A_TIME, row_groups=[group], columns=[self._text_field], use_threads=False
                    )
                    for batch in batches:
                        passed = min(max(start_row - row, 0), batch.num_rows)
                        if passed < batch.num_rows:
                            yield group, row + passed, _listed(batch.column(0)[passed:])
                        row += batch.num_rows
        except _DAMAGE as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self._path} is damaged or not a Parquet file ({_reason(error)}); {counted(row, 'row')} could be "
                "read. Fetch the file again, or leave it out."
            ) from error

    def _require_column(self, schema: pyarrow.Schema) -> None:
        if self._text_field not in schema.names:
            raise DataError(
                f"{self._path} has no column {self._text_field!r}. Columns present: {', '.join(schema.names)}. "
                "Name the one with the text: --text-field, or text_field in a recipe."
            )


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _listed(column: pyarrow.Array) -> list[object]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not look into strings when it reads them
        return [_value(scalar) for scalar in column]


def _value(scalar: pyarrow.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _decoded(value: object) -> object:
    """Pass a value on, or say what kept it from being decoded."""
    if isinstance(value, UnicodeDecodeError):
        raise RowProblem(
            f"its text is not UTF-8: byte 0x{value.object[value.start]:02x} at byte {value.start:,} ({value.reason})"
        )
    return value
