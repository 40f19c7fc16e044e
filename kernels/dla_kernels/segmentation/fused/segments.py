"""The segments that begin in each chunk, as the stages of the segmentation pass them on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels.reader.fused.pieces import Pieces


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The segments that begin in each chunk, in order; a sequence's first token begins one, too.

    Attributes:
        opened: `[chunks, H]` int32, the number of these segments.
        carried: `[chunks, H]` float32, the summed scores of the tokens before the first of them.
        position: `[chunks, H, C]` uint8, the token at which each begins; the chunk's number of tokens where there is no
            segment.
        sums: `[chunks, H, C]` float32, the summed scores of each up to the chunk's end, including its first token's.
    """

    opened: Tensor
    carried: Tensor
    position: Tensor
    sums: Tensor

    @staticmethod
    def empty(pieces: Pieces, heads: int, device: torch.device) -> Segments:
        """Uninitialized tensors."""
        chunks, each = (pieces.tiles, heads), (pieces.tiles, heads, pieces.tile)
        return Segments(
            opened=torch.empty(chunks, dtype=torch.int32, device=device),
            carried=torch.empty(chunks, dtype=torch.float32, device=device),
            position=torch.empty(each, dtype=torch.uint8, device=device),
            sums=torch.empty(each, dtype=torch.float32, device=device),
        )
