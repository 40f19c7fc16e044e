"""Whole windows cut into the shorter ones of a curriculum's phase."""

import torch
from torch import Tensor

from dla_data.separate_windows import SeparateBatch


def cut_batch(batch: Tensor | SeparateBatch, window: int) -> Tensor | SeparateBatch:
    """Cut windows `[B, W + 1]` into `[B * W / window, window + 1]`: each piece's last target is the next one's first
    input.

    Where documents are kept apart, one that a cut goes through begins anew behind it, as it does in a new window.
    """
    if isinstance(batch, Tensor):
        return _cut(batch, window)
    cuts = torch.arange(0, int(batch.cu_seqlens[-1]), window, dtype=torch.int32, device=batch.cu_seqlens.device)
    return SeparateBatch(_cut(batch.tokens, window), torch.cat([batch.cu_seqlens, cuts]).unique())


def _cut(tokens: Tensor, window: int) -> Tensor:
    return tokens.unfold(1, window + 1, window).flatten(0, 1)
