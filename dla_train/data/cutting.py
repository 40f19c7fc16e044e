"""Cuts full windows into the shorter ones of a curriculum's phase."""

import torch
from torch import Tensor

from dla_data.separate_windows import SeparateBatch


def cut_batch(batch: Tensor | SeparateBatch, window: int) -> Tensor | SeparateBatch:
    """Cut windows `[B, W + 1]` into `[B * W / window, window + 1]`: each piece's last target is the next one's first
    input.

    If documents are kept apart, a document that is cut begins anew after the cut, as it would in a new window.
    """
    if isinstance(batch, Tensor):
        return _cut(batch, window)
    cuts = torch.arange(0, int(batch.cu_seqlens[-1]), window, dtype=torch.int32, device=batch.cu_seqlens.device)
    return SeparateBatch(_cut(batch.tokens, window), torch.cat([batch.cu_seqlens, cuts]).unique())


def _cut(tokens: Tensor, window: int) -> Tensor:
    return tokens.unfold(1, window + 1, window).flatten(0, 1)
