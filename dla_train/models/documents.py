"""Packed documents inside a model: computed once per call, used by every layer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels.documents import ends_of, positions


@dataclass  # if it were frozen, torch.compile of 2.11 would make graphs anew where there are one or several documents
class Documents:
    """Several documents packed into one row `[1, T]`; nothing may cross from one into the next.

    Attributes:
        cu_seqlens: `[N + 1]`, where each document starts; the last entry is T.
        positions: `[T]` int64, the position of each token in its document.
        lengths: tokens of each document, on the host: softmax attention needs them.
    """

    cu_seqlens: Tensor
    positions: Tensor
    lengths: tuple[int, ...]

    @staticmethod
    def of(cu_seqlens: Tensor, batch: int, time: int) -> Documents:
        """Checks `cu_seqlens` against tokens `[batch, time]`.

        Raises:
            ValueError: the batch is not 1, or `cu_seqlens` does not cut `0 .. time` into documents of a token or more.
        """
        if batch != 1:
            raise ValueError(f"cu_seqlens was given with a batch of {batch}; packed documents need a batch of 1")
        if not isinstance(cu_seqlens, Tensor):
            raise ValueError(
                f"cu_seqlens is of type {type(cu_seqlens).__name__}; it must be a tensor, a vector of int32 or int64 "
                "numbers"
            )
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"cu_seqlens has shape {tuple(cu_seqlens.shape)} and type {cu_seqlens.dtype}; "
                "it must be a vector of int32 or int64 numbers"
            )
        starts = list(ends_of(cu_seqlens))
        lengths = tuple(after - before for before, after in itertools.pairwise(starts))
        if not lengths or starts[0] != 0 or starts[-1] != time or min(lengths) < 1:
            shown = str(starts) if len(starts) <= 12 else f"[{starts[0]}, ..., {starts[-1]}]"
            raise ValueError(
                f"cu_seqlens is {shown}; it must start at 0, grow at every step and end at {time}, the tokens"
            )
        return Documents(cu_seqlens, positions(cu_seqlens, time, cu_seqlens.device), lengths)
