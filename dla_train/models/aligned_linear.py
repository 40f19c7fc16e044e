"""Projections whose rows GPUs read quickly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dla_train.models.product_type import product_type

MULTIPLE = 16
"""Numbers. Kernels load whole vectors from rows of which Triton knows that their stride is a multiple of it, and the
tensor cores' matrices are fetched at full speed if rows begin at multiples of 16 bytes."""
FEW = 1024
"""Tokens. For fewer, a product takes no longer than the longer copy of its weights."""


def missing_columns(width: int, x: Tensor) -> int:
    """How many columns of zeros a product of `x` with weights `[width, hidden]` gets, on a GPU in 16-bit types."""
    is_narrow = x.is_cuda and product_type(x) in (torch.bfloat16, torch.float16)
    return -width % MULTIPLE if is_narrow and x.shape[:-1].numel() >= FEW else 0


def aligned_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x` `[..., hidden]` times `weight` `[width, hidden]`: `[..., width]`, of a tensor with `missing_columns` more."""
    missing = missing_columns(weight.shape[0], x)
    if not missing:
        return F.linear(x, weight)
    longer = F.linear(x, F.pad(weight.to(product_type(x)), (0, 0, 0, missing)))
    return longer.split([weight.shape[0], missing], -1)[0]  # its backward makes one copy, that of a slice two


class AlignedLinear(nn.Linear):
    """For a mixer's projections, which are one matrix.

    A mixer's heads have a time scale each, which makes the sum of all widths odd: 6,924 for the Gated DeltaNet of 790M.
    In bfloat16 no matrix with such rows (the results and their gradient, which three products write or read) can be
    fetched in whole 16 bytes, nor can what the convolution and the gated norm read of it. So on a GPU rows are a little
    longer; the weights are not.

    Args:
        hidden: width of the input. width: of the results.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__(hidden, width, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., width]`."""
        return aligned_linear(input, self.weight)
