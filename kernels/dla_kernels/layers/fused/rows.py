"""Rows of channels in global memory: how tensors are seen as rows, and how programs that hold whole rows load them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 2048
"""What a program holds at once, where rows are short enough to let it hold several."""


def rows_of(x: Tensor) -> Tensor:
    """`[..., N]` -> `[outer, inner, N]` with channels side by side; rows may lie apart, so mostly nothing is copied."""
    x = x.reshape(-1, *x.shape[-2:]) if x.ndim > 2 else x.reshape(1, -1, x.shape[-1])
    return x if x.stride(2) == 1 else x.contiguous()


def block_of(width: int) -> dict[str, int]:
    """The constants of a program's block, BR rows of N = `width` channels, with room for BN."""
    block = 1 << (width - 1).bit_length()
    return {"N": width, "BN": block, "BR": max(1, NUMBERS // block)}


@triton.jit
def load_rows(ptr, row, rows, inner, outer_stride, inner_stride, channel, is_channel):
    """`[BR, BN]` float32 of the tensor at `ptr`, zeros where there is no row or channel."""
    offset = row // inner * outer_stride + row % inner * inner_stride
    is_there = (row < rows)[:, None] & is_channel[None, :]
    return tl.load(ptr + offset[:, None] + channel[None, :], mask=is_there, other=0.0).to(tl.float32)


@triton.jit
def store_rows(ptr, x, row, rows, channels, channel, is_channel):
    """Stores `[BR, BN]` in a contiguous tensor with rows of `channels`."""
    is_there = (row < rows)[:, None] & is_channel[None, :]
    tl.store(ptr + (row * channels)[:, None] + channel[None, :], x.to(ptr.dtype.element_ty), mask=is_there)
