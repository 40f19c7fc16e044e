"""Several projections of the same input in one product, in rows that GPUs read quickly."""

from __future__ import annotations

from collections.abc import Sequence

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


def padded_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x` `[..., hidden]` times `weight` `[width, hidden]`: `[..., width + missing_columns(width, x)]`."""
    missing = missing_columns(weight.shape[0], x)
    return F.linear(x, F.pad(weight.to(product_type(x)), (0, 0, 0, missing)) if missing else weight)


class JoinedLinear(nn.Linear):
    """One matrix for several results.

    A mixer's heads have a time scale each, which makes the sum of all widths odd: 6,924 for the Gated DeltaNet of 790M.
    In bfloat16 no matrix with such rows (the results and their gradient, which three products write or read) can be
    fetched in whole 16 bytes, nor can what the convolution and the gated norm read of it. So on a GPU rows are a little
    longer; the weights are not.

    Args:
        hidden: width of the input. widths: of the results.
    """

    def __init__(self, hidden: int, widths: Sequence[int]) -> None:
        super().__init__(hidden, sum(widths), bias=False)
        self.widths = tuple(widths)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, hidden]` -> a tensor `[B, T, width]` for each width, views of one."""
        joined = padded_linear(input, self.weight)
        missing = joined.shape[-1] - self.out_features
        # Split off and not cut off: the gradients are then put together in rows of the same length at once.
        return joined.split([*self.widths, missing] if missing else self.widths, -1)[: len(self.widths)]
