"""Documents out of files and data sets: JSON lines (plain, gzip, Zstandard), Parquet, plain text, Hugging Face.

    for reader in Source(path="corpus/").readers():
        for position, text in reader.documents():
            ...

Nothing is ever unpickled and no code that comes with data is run.
"""

from dla_data.readers.reader import START, BadRow, DocumentReader, Position, ReadingLog, TooManyBadRows
from dla_data.readers.source import Source
from dla_data.readers.version import DataSetVersion

__all__ = ["START", "BadRow", "DataSetVersion", "DocumentReader", "Position", "ReadingLog", "Source", "TooManyBadRows"]
