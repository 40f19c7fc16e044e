# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Merges (eqs. 16 and 17): turns segments into shifts, one after the other, with only scalars and vectors of M."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.segmentation.fused.segments import Segments


def merge_slots(segments: Segments, shift: Tensor, score_sum: Tensor, count: Tensor, pieces: Pieces) -> None:
    """Set the shifts, `[tokens, H]` int32, of the tokens at which segments begin.

    score_sum, count `[N, H, M]` (as in SegmentState) are updated in place to those at the end.
    """
    heads, slots = shift.shape[1], count.shape[-1]
    merge_slots_kernel[(pieces.sequences * heads,)](
        segments.opened, segments.carried, segments.position, segments.sums, score_sum, count, shift, pieces.cu,
        pieces.first_tile, H=heads, M=slots, MP=max(2, triton.next_power_of_2(slots)), C=pieces.tile, num_warps=1,
    )  # fmt: skip


@triton.jit
def youngest_of_sparsest_pair(sums, count, slot, M: tl.constexpr, MP: tl.constexpr):
    """Eq. 16: the age of the younger member of the adjacent pair of lowest density; ties go to the oldest.

    Densities are not negative, so their bits, read as integers, have the same order, and integers are reduced by a
    single instruction. Places without a pair divide one by one, because GPUs are slow to divide if there is a zero.
    """
    older = tl.minimum(slot + 1, MP - 1)
    tokens = (count + tl.gather(count, older, 0)).to(tl.float32)
    total = tl.where(tokens > 0.0, sums + tl.gather(sums, older, 0), 1.0)
    density = tl.div_rn(total, tl.where(tokens > 0.0, tokens, 1.0))
    order = tl.where(slot < M - 1, density.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    return tl.max(tl.where(order == tl.min(order, 0), slot, 0), 0)


@triton.jit
def age_slots(x, slot, shift, youngest):
    """Eq. 17: slots of ages up to `shift` become one older, and the oldest of them is added to the slot that has its
    new age; age 0 gets `youngest`."""
    moved = tl.gather(x, tl.maximum(slot - 1, 0), 0)
    return tl.where(slot == 0, youngest, tl.where(slot <= shift, moved, tl.where(slot == shift + 1, x + moved, x)))


@triton.jit
def first_segment(
    carried_ptr, position_ptr, sums_ptr, first_tile, h, chunks, c, length, H: tl.constexpr, C: tl.constexpr
):
    """For chunk c: `carried`, where its first segment begins and ends, and that segment's sum; zeros after the last
    chunk."""
    chunk = (first_tile + c) * H + h
    there = c < chunks
    carried = tl.load(carried_ptr + chunk, mask=there, other=0.0)
    position = tl.load(position_ptr + chunk * C, mask=there, other=0).to(tl.int32)
    following = tl.load(position_ptr + chunk * C + 1, mask=there, other=0).to(tl.int32)
    of_segment = tl.load(sums_ptr + chunk * C, mask=there, other=0.0)
    return carried, position, tl.minimum(following, tl.minimum(length - c * C, C)), of_segment


@triton.jit
def merge_slots_kernel(
    opened_ptr, carried_ptr, position_ptr, segment_sums_ptr, sums_ptr, count_ptr, shift_ptr, cu_ptr, first_tile_ptr,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """shift_t at the tokens where segments begin: the sparsest pair's age if all M slots are in use, else M. Each step
    waits for the one before, so it contains nothing that can be done elsewhere."""
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    slot = tl.arange(0, MP)
    at = (n * H + h) * M + slot
    sums = tl.load(sums_ptr + at, mask=slot < M, other=0.0)
    count = tl.load(count_ptr + at, mask=slot < M, other=0)
    used = tl.sum((count > 0).to(tl.int32))
    begin = tl.load(cu_ptr + n)
    length = (tl.load(cu_ptr + n + 1) - begin).to(tl.int32)
    first_tile = tl.load(first_tile_ptr + n).to(tl.int64)
    chunks = (length + C - 1) // C
    carried, position, following, of_segment = first_segment(
        carried_ptr, position_ptr, segment_sums_ptr, first_tile, h, chunks, 0, length, H, C
    )
    for c in range(0, chunks):
        # what a step needs is loaded one step, or one chunk, ahead
        chunk = (first_tile + c) * H + h
        opened = tl.load(opened_ptr + chunk)  # not carried on, as a bound must not be: TRITON-PITFALLS.md
        size = tl.minimum(length - c * C, C)
        next_carried, next_position, next_following, next_of_segment = first_segment(
            carried_ptr, position_ptr, segment_sums_ptr, first_tile, h, chunks, c + 1, length, H, C
        )
        sums += tl.where(slot == 0, carried, 0.0)
        count += tl.where(slot == 0, position, 0)
        for s in range(0, opened):
            after = tl.load(position_ptr + chunk * C + s + 2, mask=s + 2 < C, other=C).to(tl.int32)
            of_next = tl.load(segment_sums_ptr + chunk * C + s + 1, mask=s + 1 < C, other=0.0)
            shift = tl.where(used == M, youngest_of_sparsest_pair(sums, count, slot, M, MP), M)
            sums = age_slots(sums, slot, shift, of_segment)
            count = age_slots(count, slot, shift, following - position)
            tl.store(shift_ptr + (begin + c * C + position) * H + h, shift)
            used = tl.minimum(used + 1, M)
            position, following, of_segment = following, tl.minimum(after, size), of_next
        carried, position, following, of_segment = next_carried, next_position, next_following, next_of_segment
    tl.store(sums_ptr + at, sums, mask=slot < M)
    tl.store(count_ptr + at, count, mask=slot < M)
