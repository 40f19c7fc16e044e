"""The bytes of a file, block by block, decompressed if its name says so; a truncated file is an error."""

import errno
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from dla_data.errors import DataError
from dla_data.readers.reader import ReadingLog

# One block of input may grow a thousandfold when decompressed; larger blocks read no faster.
_BLOCK_BYTES = 1 << 18
# Files made with `zstd --long=31` need this window; memory for it is taken only if a file asks for it.
_ZSTD_WINDOW = 1 << 31


class DamagedFile(Exception):
    """The rest of the file cannot be read; the reader adds how far it got."""


class _Frame(Protocol):
    """One compressed stream of a file, which may hold several, one after another."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _new_gzip() -> _Frame:
    return zlib.decompressobj(wbits=31)  # 31: with the header and checksum of gzip


def _new_zstd() -> _Frame:
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


_FRAMES: dict[str, Callable[[], _Frame]] = {".gz": _new_gzip, ".zst": _new_zstd}

COMPRESSED_SUFFIXES = tuple(_FRAMES)


def blocks(path: Path, offset: int, log: ReadingLog) -> Iterator[bytes]:
    """Yield the uncompressed content of `path` from byte `offset` of it on.

    A plain file is read from there; a compressed one must be decompressed from its beginning.

    Raises:
        DamagedFile: a compressed file is cut off or corrupt.
        DataError: the file cannot be read.
    """
    new_frame = _FRAMES.get(path.suffix)
    try:
        with path.open("rb") as file:
            if new_frame is None:
                log.bytes_read += file.seek(offset)
                yield from _raw(file, log)
                return
            for block in _decompressed(_raw(file, log), new_frame):
                if offset < len(block):
                    yield block[offset:]
                offset = max(0, offset - len(block))
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise DataError(
                f"cannot read {path}: {error.strerror} for one process (`ulimit -n`). Raise the limit, use fewer "
                "streams or sources, or share them out to more workers."
            ) from error
        raise DataError(f"cannot read {path}: {error.strerror}. Make it readable or leave it out.") from error


def file_size(path: Path) -> int:
    """Bytes on disk.

    Raises:
        DataError: the file is not there or cannot be looked at.
    """
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check the path.") from error


def _raw(file: BinaryIO, log: ReadingLog) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        log.bytes_read += len(block)
        yield block


def _decompressed(raw: Iterator[bytes], new_frame: Callable[[], _Frame]) -> Iterator[bytes]:
    frame: _Frame | None = None
    seen = False
    for rest in raw:
        seen = True
        while rest:
            if frame is None:
                rest = rest.lstrip(b"\0")  # some writers fill the last block with zeros
                if not rest:
                    break
                frame = new_frame()
            try:
                block = frame.decompress(rest)
            except (zlib.error, zstandard.ZstdError) as error:
                raise DamagedFile(f"is damaged ({error})") from error
            if block:
                yield block
            rest = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None or not seen:
        raise DamagedFile("is cut off: it ends in the middle of its compressed data" if seen else "is empty")
