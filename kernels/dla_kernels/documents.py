"""Packed documents: what `cu_seqlens` means, as tensors the op can use."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_ends: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def ends_of(cu_seqlens: Tensor) -> tuple[int, ...]:
    """Its numbers on the host, asked for once: all layers share the tensor, and each time the host waits for the GPU.

    A tensor that torch has changed in place is asked again. torch.compile leaves its graph for this, as for `tolist`.
    """
    if cu_seqlens.is_inference():  # has no version
        return tuple(cu_seqlens.tolist())
    known = _ends.get(cu_seqlens)
    if known is None or known[0] != cu_seqlens._version:
        known = _ends[cu_seqlens] = cu_seqlens._version, tuple(cu_seqlens.tolist())
    return known[1]


def token_counts(cu_seqlens: Tensor) -> list[int]:
    """Tokens of each document, on the host."""
    return [end - begin for begin, end in pairwise(ends_of(cu_seqlens))]


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
    rows = torch.split(x[0], token_counts(cu_seqlens))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)


def pack(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The inverse of `unpack`: `[N, longest, ...]` -> `[1, T, ...]`."""
    counts = token_counts(cu_seqlens)
    return torch.cat([row[:count] for row, count in zip(x, counts, strict=True)])[None]
