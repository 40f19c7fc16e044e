"""Documents packed one after another and cut into windows of equal length."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from dla_data.counted import counted
from dla_data.errors import DataError


class TokenSource(Protocol):
    """What windows are cut from: a `TokenFile`, or several that read as one."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        ...

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `stop` (exclusive)."""
        ...


class PackedWindows(Dataset[torch.Tensor]):
    """Window i is int64 [window + 1]: tokens `i * window` to `i * window + window`, both included.

    `x[:-1]` are the inputs and `x[1:]` the targets, so that every token but the first of the source is a target at most
    once and a window's last target is the next one's first input. What is left after the last whole window is not used.

    Args:
        source: the tokens; `str(source)` should tell a user where they are.
        window: tokens predicted per window.

    Raises:
        DataError: `window` below 1, or fewer than `window + 1` tokens.
    """

    def __init__(self, source: TokenSource, window: int) -> None:
        if window < 1:
            raise DataError(f"a window of {window} tokens is impossible: it must be at least 1.")
        if source.tokens < window + 1:
            raise DataError(
                f"{source} has {counted(source.tokens, 'token')}, too few for one window of {window:,} "
                f"({window + 1:,} with the last target). "
                f"Use windows of at most {max(source.tokens - 1, 0):,}, or more text."
            )
        self.source = source
        self.window = window

    def __len__(self) -> int:
        return (self.source.tokens - 1) // self.window

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")  # IndexError, because it ends a plain `for` loop
        begin = index * self.window
        return torch.from_numpy(self.source.read(begin, begin + self.window + 1))
