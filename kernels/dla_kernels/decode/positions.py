# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The plan of a single token that looks at positions only, in one launch; in torch it takes a dozen of small ones."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.operators import operator

MOST_ZEROS = 62
"""How many zeros an int64 above 0 may end with in binary; a power of two with one more does not fit into its type."""


@operator("dla::plan_token")
def plan_token(start: Tensor, heads: int, capacity: int, block: int) -> tuple[Tensor, Tensor]:
    """`shift` and `score` `[N, 1, H]` of the token that comes after `start` `[N]` others (see `Plan`).

    Slots as in `fixed_plan` with this `block`, or, if it is 0, as in `fenwick_plan`.
    """
    shape = start.shape[0], 1, heads
    shift = torch.empty(shape, dtype=torch.int32, device=start.device)
    score = torch.empty(shape, dtype=torch.float32, device=start.device)
    plan_token_kernel[(start.shape[0],)](
        start.contiguous(), shift, score, BLOCK=block, H=heads, HP=triton.next_power_of_2(heads), M=capacity,
        ZEROS=max(0, min(capacity - 2, MOST_ZEROS)), num_warps=1,
    )  # fmt: skip
    return shift, score


@plan_token.register_fake
def _(start, heads, capacity, block):
    shape = start.shape[0], 1, heads
    return start.new_empty(shape, dtype=torch.int32), start.new_empty(shape, dtype=torch.float32)


@triton.jit
def plan_token_kernel(
    start_ptr, shift_ptr, score_ptr, BLOCK: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, M: tl.constexpr,
    ZEROS: tl.constexpr,
):  # fmt: skip
    """One program per sequence."""
    n = tl.program_id(0).to(tl.int64)
    position = tl.load(start_ptr + n).to(tl.int64)
    shift = position * 0 - 1
    if M > 1:
        if BLOCK:
            opens = position % BLOCK == 0
            shift = tl.where(opens, tl.where(position // BLOCK < M, M, M - 2), shift)
        else:
            shift = tl.where(position == 0, M, 0)
            for zeros in tl.static_range(1, ZEROS + 1):  # how many the position ends with in binary, at most M - 2
                shift += ((position > 0) & (position % (1 << zeros) == 0)).to(tl.int32)
    h = tl.arange(0, HP)
    tl.store(shift_ptr + n * H + h, shift.to(tl.int32) + h * 0, mask=h < H)
    tl.store(score_ptr + n * H + h, h * 0.0, mask=h < H)
