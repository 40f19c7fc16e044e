"""Windows that know where documents begin, so that a model can keep them apart.

A document's inputs begin with the end-of-document token before it, and its targets end with its own: the stream
`a b # c d e #` is trained on as `a b -> b #` and `# c d e -> c d e #`. So every token is a target and no loss is
masked. The first token of a document is predicted from nothing but "a document begins", which is also how generation
begins.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dla_data.windows import PackedWindows, TokenSource


class DocumentSource(TokenSource, Protocol):
    """Tokens of which it is known where documents begin."""

    def document_starts(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Where documents begin from token `start` on and before `stop`."""
        ...


class SeparateWindow(NamedTuple):
    """tokens: int64 [window + 1]. starts: int64 [documents], where they begin among the inputs; the first is 0."""

    tokens: Tensor
    starts: Tensor


class SeparateBatch(NamedTuple):
    """Several windows laid in one row.

    tokens: int64 [B, window + 1]. cu_seqlens: int32 [documents + 1], where documents begin in the row of B * window
    inputs; the last entry is its length.
    """

    tokens: Tensor
    cu_seqlens: Tensor


class SeparateWindows(Dataset[SeparateWindow]):
    """The same windows as `PackedWindows`, each with its documents; a document that a window cuts begins anew in the
    next one.

    Args:
        source: the tokens. window: tokens predicted per window.

    Raises:
        DataError: as `PackedWindows`.
    """

    def __init__(self, source: DocumentSource, window: int) -> None:
        self.packed = PackedWindows(source, window)
        self._source = source

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> SeparateWindow:
        tokens = self.packed[index]
        begin, window = index * self.packed.window, self.packed.window
        # The inputs of a document begin one token before it; one that begins with the window is there anyway.
        starts = self._source.document_starts(begin + 2, begin + window + 1) - 1 - begin
        return SeparateWindow(tokens, torch.from_numpy(np.concatenate([[0], starts]).astype(np.int64)))


def lay_in_a_row(windows: Sequence[SeparateWindow]) -> SeparateBatch:
    """Put windows of equal length together; no document goes across from one into the next."""
    length = windows[0].tokens.shape[0] - 1
    starts = [window.starts + number * length for number, window in enumerate(windows)]
    cu_seqlens = torch.cat([*starts, torch.tensor([len(windows) * length])]).to(torch.int32)
    return SeparateBatch(torch.stack([window.tokens for window in windows]), cu_seqlens)
