# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Merges (eqs. 16 and 17): from scores and boundaries to shifts. Only scalars and vectors of M, one boundary after the other."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.pieces import Pieces


def merge_slots(
    score: Tensor, boundary: Tensor, score_sum: Tensor, count: Tensor, pieces: Pieces
) -> tuple[Tensor, Tensor]:
    """shift int32 and score float32 `[tokens, H]`, from score and boundary `[H, tokens]`.

    score_sum, count `[N, H, M]` (as in SegmentState) become those at the end, in place.
    """
    heads, tokens = score.shape
    slots = count.shape[-1]
    shift = torch.empty(tokens, heads, dtype=torch.int32, device=score.device)
    by_token = torch.empty(tokens, heads, dtype=torch.float32, device=score.device)
    merge_slots_kernel[(pieces.sequences * heads,)](
        score, boundary, score_sum, count, shift, by_token, pieces.cu, tokens,
        H=heads, M=slots, MP=max(2, triton.next_power_of_2(slots)), C=64, num_warps=1,
    )  # fmt: skip
    return shift, by_token


@triton.jit
def youngest_of_sparsest_pair(sums, count, slot, M: tl.constexpr, MP: tl.constexpr):
    """Eq. 16: the age of the younger member of the adjacent pair of lowest density; ties go to the oldest."""
    older = tl.minimum(slot + 1, MP - 1)
    tokens = (count + tl.gather(count, older, 0)).to(tl.float32)
    density = tl.div_rn(sums + tl.gather(sums, older, 0), tl.where(tokens > 0.0, tokens, 1.0))
    density = tl.where(slot < M - 1, density, float("inf"))
    return tl.max(tl.where(density == tl.min(density), slot, 0))


@triton.jit
def age_slots(x, slot, shift, zero):
    """Eq. 17: ages up to `shift` become one older, the oldest of them added to the slot it meets; age 0 is empty."""
    moved = tl.gather(x, tl.maximum(slot - 1, 0), 0)
    return tl.where(slot == 0, zero, tl.where(slot <= shift, moved, tl.where(slot == shift + 1, x + moved, x)))


@triton.jit
def merge_slots_kernel(
    score_ptr, boundary_ptr, sums_ptr, count_ptr, shift_ptr, by_token_ptr, cu_ptr, tokens,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """shift_t = -1, or the sparsest pair's age where all M slots are in use, or M; C tokens are loaded at a time"""
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    slot = tl.arange(0, MP)
    row = tl.arange(0, C)
    at = (n * H + h) * M + slot
    sums = tl.load(sums_ptr + at, mask=slot < M, other=0.0)
    count = tl.load(count_ptr + at, mask=slot < M, other=0)
    begin = tl.load(cu_ptr + n)
    length = (tl.load(cu_ptr + n + 1) - begin).to(tl.int32)
    for start in range(0, length, C):
        t = begin + start + row
        there = start + row < length
        score = tl.load(score_ptr + h * tokens + t, mask=there, other=0.0)
        opens = tl.load(boundary_ptr + h * tokens + t, mask=there, other=0).to(tl.int32) > 0
        if M > 1:
            opens = opens | ((row == 0) & (tl.sum(count) == 0))
        shift = tl.full((C,), -1, tl.int32)
        end = tl.minimum(length - start, C)
        p = 0
        while p < end:  # from boundary to boundary
            following = tl.min(tl.where(opens & (row >= p), row, end))
            joins = (row >= p) & (row < following)
            sums += tl.where(slot == 0, tl.sum(tl.where(joins, score, 0.0)), 0.0)
            count += tl.where(slot == 0, following - p, 0)
            if following < end:
                to = tl.where(
                    tl.sum((count > 0).to(tl.int32)) == M, youngest_of_sparsest_pair(sums, count, slot, M, MP), M
                )
                sums = age_slots(sums, slot, to, 0.0)
                count = age_slots(count, slot, to, 0)
                sums += tl.where(slot == 0, tl.sum(tl.where(row == following, score, 0.0)), 0.0)
                count += (slot == 0).to(tl.int32)
                shift = tl.where(row == following, to, shift)
            p = following + 1
        tl.store(shift_ptr + t * H + h, shift, mask=there)
        tl.store(by_token_ptr + t * H + h, score, mask=there)
    tl.store(sums_ptr + at, sums, mask=slot < M)
    tl.store(count_ptr + at, count, mask=slot < M)
