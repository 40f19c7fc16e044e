# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""How states of slots are stored: once per chunk, as a high and a low part.

A state is a sum over up to all tokens, carried from chunk to chunk, so it must not be rounded to 16 bits at every step;
but tensor cores read 16 bits, and reading is what costs. So 16-bit inputs keep `high + low`, two numbers of their own
type (about as good as float32): the carry reads both, every product reads `high` alone. float32 inputs keep one number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


class StateRows:
    """`[rows, H, M, K, V]` twice, `high` and `low` (the same tensor for float32), uninitialised."""

    def __init__(self, rows: int, heads: int, slots: int, key_dim: int, value_dim: int, like: Tensor) -> None:
        shape = (max(rows, 1), heads, slots, key_dim, value_dim)
        self.high = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.split = like.dtype != torch.float32
        self.low = torch.empty_like(self.high) if self.split else self.high

    def put(self, rows: Tensor, states: Tensor) -> None:
        """Sets whole rows, `[N]` of them, to states `[N, H, M, K, V]` float32."""
        high = states.to(self.high.dtype)
        self.high[rows] = high
        if self.split:
            self.low[rows] = (states - high.float()).to(self.low.dtype)


@triton.jit
def slot_offset(row, h, i, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, V: tl.constexpr):
    """Where the matrix of slot i begins, in elements."""
    return ((row.to(tl.int64) * H + h) * M + i) * (K * V)


@triton.jit
def load_state(high_ptr, low_ptr, at, mask, SPLIT: tl.constexpr):
    """float32, both parts."""
    state = tl.load(high_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if SPLIT:
        state += tl.load(low_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return state


@triton.jit
def store_state(high_ptr, low_ptr, at, state, mask, SPLIT: tl.constexpr):
    """The counterpart of `load_state`."""
    high = state.to(high_ptr.dtype.element_ty)
    tl.store(high_ptr + at, high, mask=mask)
    if SPLIT:
        tl.store(low_ptr + at, (state - high.to(tl.float32)).to(high_ptr.dtype.element_ty), mask=mask)
