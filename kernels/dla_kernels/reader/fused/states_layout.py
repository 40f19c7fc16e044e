# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""How states of slots are stored: once per chunk, and as a high and a low part while they are being summed.

A state is a sum over up to all tokens, carried from chunk to chunk, so it must not be rounded to 16 bits at every step;
but tensor cores read 16 bits, and reading is the main cost. So for 16-bit inputs, `high + low`, two numbers of their
type (about as accurate as float32), are kept until all chunks are carried; every product reads only `high`, and `low`
is then freed. For float32 inputs, one number is kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LAUNCHED_CHUNKS = 65_535
"""Most chunks in one launch: CUDA's limit of a grid's third dimension. 17 million tokens, or as many documents as this,
have more chunks."""


class StateRows:
    """`[rows, H, M, K, V]` twice, `high` and `low` (the same tensor for float32), uninitialized."""

    def __init__(self, rows: int, heads: int, slots: int, key_dim: int, value_dim: int, like: Tensor) -> None:
        shape = (max(rows, 1), heads, slots, key_dim, value_dim)
        self.high = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.split = like.dtype != torch.float32
        self.low = torch.empty_like(self.high) if self.split else self.high

    def put(self, rows: Tensor, states: Tensor) -> None:
        """Set the rows with the indices `[N]` to states `[N, H, M, K, V]` float32."""
        high = states.to(self.high.dtype)
        self.high[rows] = high
        if self.split:
            self.low[rows] = (states - high.float()).to(self.low.dtype)


def launches_of(chunks: int) -> list[tuple[int, int]]:
    """The first chunk of each launch, and its number of chunks."""
    return [(begin, min(LAUNCHED_CHUNKS, chunks - begin)) for begin in range(0, chunks, LAUNCHED_CHUNKS)]


@triton.jit
def slot_offset(row, h, i, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, V: tl.constexpr):
    """Where the matrix of slot i begins, in elements."""
    return ((row.to(tl.int64) * H + h) * M + i) * (K * V)


@triton.jit
def start_row(chunk, n, HAS_STATE: tl.constexpr):
    """The row of the states at the start of a chunk (with `HAS_STATE`, also of a sequence's first)."""
    if HAS_STATE:
        return chunk
    else:
        return chunk - n - 1


@triton.jit
def end_row(chunk, n, HAS_DFINAL: tl.constexpr):
    """The row of the adjoint at the end of a chunk (with `HAS_DFINAL`, also of a sequence's last)."""
    if HAS_DFINAL:
        return chunk
    else:
        return chunk - n


@triton.jit
def block_of(part, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Rows and columns of a block of a state."""
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    return (part // BLOCKS_V) * BK + tl.arange(0, BK), (part % BLOCKS_V) * BV + tl.arange(0, BV)


@triton.jit
def load_state(high_ptr, low_ptr, at, mask, SPLIT: tl.constexpr):
    """A block of a state as float32, from both parts."""
    state = tl.load(high_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if SPLIT:
        state += tl.load(low_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return state


@triton.jit
def store_state(high_ptr, low_ptr, at, state, mask, SPLIT: tl.constexpr):
    """Store what `load_state` reads."""
    high = state.to(high_ptr.dtype.element_ty)
    tl.store(high_ptr + at, high, mask=mask)
    if SPLIT:
        tl.store(low_ptr + at, (state - high.to(tl.float32)).to(high_ptr.dtype.element_ty), mask=mask)
