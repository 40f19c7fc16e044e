"""Many token files that read as one long row of tokens."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dla_data.errors import DataError
from dla_data.token_file import TokenFile

# A memory map holds a file descriptor, of which a process often may have only 1,024.
_OPEN_AT_ONCE = 128


class ShardedTokens:
    """The token files of all shards, one after another; a `TokenSource` for windows.

    Args:
        paths: of the token files, in order. sizes: tokens in each. shown: what messages call the whole.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], shown: str) -> None:
        self._paths = list(paths)
        self._ends = np.cumsum(np.asarray(sizes, dtype=np.int64))
        self._shown = shown
        self._open: dict[int, TokenFile] = {}

    def __str__(self) -> str:
        return self._shown

    @property
    def tokens(self) -> int:
        """Number of tokens, end-of-document tokens included."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Copy tokens `start` to `stop` (exclusive), int64 [stop - start].

        Raises:
            DataError: the range is not inside.
        """
        parts = [file.read(begin, end) for file, begin, end, _ in self._pieces(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.int64)

    def document_starts(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Where documents begin from token `start` on and before `stop`, int64, counted from the first token of all.

        Raises:
            DataError: the range is not inside.
        """
        found = [np.empty(0, np.int64)]
        for file, begin, end, base in self._pieces(start, stop):
            starts = file.document_starts
            first, last = np.searchsorted(starts, [begin, end])
            found.append(starts[first:last] + base)
        return np.concatenate(found)

    def _pieces(self, start: int, stop: int) -> list[tuple[TokenFile, int, int, int]]:
        """(file, first token in it, last one exclusive, tokens before it) for all files that the range touches."""
        if not 0 <= start <= stop <= self.tokens:
            raise DataError(f"tokens {start} to {stop} asked for, but {self} has tokens 0 to {self.tokens}.")
        pieces = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            base = int(self._ends[number - 1]) if number else 0
            end = min(stop, int(self._ends[number]))
            pieces.append((self._file(number), start - base, end - base, base))
            start, number = end, number + 1
        return pieces

    def _file(self, number: int) -> TokenFile:
        if number not in self._open:
            if len(self._open) >= _OPEN_AT_ONCE:
                del self._open[next(iter(self._open))]  # the one opened first: windows come in no order anyway
            self._open[number] = TokenFile.open(self._paths[number])
        return self._open[number]
