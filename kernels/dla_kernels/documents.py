"""Packed documents: what `cu_seqlens` means, as tensors the op can use."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_of(cu_seqlens: Tensor | None, batch: int, time: int, device: torch.device) -> Tensor:
    """`[N]` int64, tokens of each sequence: N documents, or `batch` sequences of `time` tokens where there are none."""
    if cu_seqlens is None:
        return torch.full((batch,), time, dtype=torch.int64, device=device)
    return cu_seqlens.long().diff().to(device)


def first_tokens(cu_seqlens: Tensor | None, time: int, device: torch.device) -> Tensor:
    """`[T]` bool: the token is the first of a document (of the whole sequence, where there are no documents)."""
    first = torch.zeros(time, dtype=torch.bool, device=device)
    if cu_seqlens is None:
        first[:1] = True
    else:
        first[cu_seqlens[:-1].long().to(device)] = True
    return first


def positions(cu_seqlens: Tensor | None, time: int, device: torch.device) -> Tensor:
    """`[T]` int64: the position of each token in its document."""
    index = torch.arange(time, device=device)
    if cu_seqlens is None:
        return index
    starts = cu_seqlens[:-1].long().to(device)
    return index - starts[first_tokens(cu_seqlens, time, device).long().cumsum(0) - 1]


def unpack(x: Tensor, cu_seqlens: Tensor, fill: float = 0.0) -> Tensor:
    """`[1, T, ...]` packed documents -> `[N, longest, ...]`, one a row, filled up with `fill`. Differentiable."""
    lengths = cu_seqlens.long().diff().tolist()
    rows = torch.split(x[0], lengths)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)


def pack(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The inverse of `unpack`: `[N, longest, ...]` -> `[1, T, ...]`."""
    lengths = cu_seqlens.long().diff().tolist()
    return torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])[None]
