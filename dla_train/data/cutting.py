"""Cuts full windows into the shorter ones of a curriculum's phase."""

from torch import Tensor

from dla_data.separate_windows import SeparateBatch
from dla_kernels.documents import cu_seqlens_of, ends_of


def cut_batch(batch: Tensor | SeparateBatch, window: int) -> Tensor | SeparateBatch:
    """Cut windows `[B, W + 1]` into `[B * W / window, window + 1]`: each piece's last target is the next one's first
    input.

    If documents are kept apart, a document that is cut begins anew after the cut, as it would in a new window.
    """
    if isinstance(batch, Tensor):
        return _cut(batch, window)
    ends = ends_of(batch.cu_seqlens)
    cuts = range(0, ends[-1], window)
    return SeparateBatch(_cut(batch.tokens, window), cu_seqlens_of(sorted({*ends, *cuts}), batch.cu_seqlens.device))


def _cut(tokens: Tensor, window: int) -> Tensor:
    return tokens.unfold(1, window + 1, window).flatten(0, 1)
