"""Packed documents: what `cu_seqlens` means, as tensors the op can use."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dla_kernels.sending import sent

_ends: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def ends_of(cu_seqlens: Tensor) -> tuple[int, ...]:
    """The numbers in `cu_seqlens`, on the host.

    From a GPU they are fetched once and remembered, because all layers share the tensor and each fetch makes the host
    wait for the GPU. A tensor changed in place by torch is fetched again. One on the CPU is read each time, as it may
    share its memory with a numpy array, of whose changes torch knows nothing. Under torch.compile this is a graph
    break, as `tolist` is. One that `cu_seqlens_of` has made is known from the start.
    """
    if _is_near(cu_seqlens) or cu_seqlens.is_inference():  # inference tensors have no version counter
        return tuple(cu_seqlens.tolist())
    known = _ends.get(cu_seqlens)
    if known is None or known[0] != cu_seqlens._version:
        known = _ends[cu_seqlens] = cu_seqlens._version, tuple(cu_seqlens.tolist())
    return known[1]


def cu_seqlens_of(ends: Sequence[int], device: torch.device) -> Tensor:
    """`cu_seqlens` `[N + 1]` int32 on `device`, with numbers that the host need not fetch from there.

    Args:
        ends: where documents begin in their row, and where the last one ends.
    """
    with torch.inference_mode(False):  # where tensors have a version counter
        made = sent(torch.tensor(ends, dtype=torch.int32), device)
        if not _is_near(made):
            _ends[made] = made._version, tuple(ends)
    return made


def _is_near(x: Tensor) -> bool:
    """Whether the host reads `x` without a wait."""
    return x.device.type == "cpu"


def token_counts(cu_seqlens: Tensor) -> list[int]:
    """Tokens of each document, on the host."""
    return [end - begin for begin, end in pairwise(ends_of(cu_seqlens))]


def lengths_of(cu_seqlens: Tensor | None, batch: int, time: int, device: torch.device) -> Tensor:
    """`[N]` int64, tokens of each sequence: of N documents, or if there are none, `time` for each of `batch` rows."""
    if cu_seqlens is None:
        return torch.full((batch,), time, dtype=torch.int64, device=device)
    return cu_seqlens.long().diff().to(device)


def first_tokens(cu_seqlens: Tensor | None, time: int, device: torch.device) -> Tensor:
    """`[T]` bool: whether the token is the first of a document (without documents: of the whole sequence)."""
    first = torch.zeros(time, dtype=torch.bool, device=device)
    if cu_seqlens is None:
        first[:1] = True
    else:  # assigned by index, the number would be copied to the GPU, and the host would wait
        first.index_fill_(0, cu_seqlens[:-1].long().to(device), True)
    return first


def positions(cu_seqlens: Tensor | None, time: int, device: torch.device) -> Tensor:
    """`[T]` int64: the position of each token in its document."""
    index = torch.arange(time, device=device)
    if cu_seqlens is None:
        return index
    starts = cu_seqlens[:-1].long().to(device)
    return index - starts[first_tokens(cu_seqlens, time, device).long().cumsum(0) - 1]


def unpack(x: Tensor, cu_seqlens: Tensor, fill: float = 0.0) -> Tensor:
    """Packed documents `[1, T, ...]` -> `[N, longest, ...]`, one per row, padded with `fill`. Differentiable."""
    rows = torch.split(x[0], token_counts(cu_seqlens))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)


def pack(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The inverse of `unpack`: `[N, longest, ...]` -> `[1, T, ...]`."""
    counts = token_counts(cu_seqlens)
    return torch.cat([row[:count] for row, count in zip(x, counts, strict=True)])[None]
