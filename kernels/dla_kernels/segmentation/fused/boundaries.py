# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The stage that follows when every chunk's first boundary is known, for all chunks in parallel: the other boundaries,
the scores, and the lists of segments that merges.py goes through. It uses only vectors over a chunk's tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from dla_kernels.reader.fused.pieces import locate
from dla_kernels.segmentation.fused.paths import information
from dla_kernels.segmentation.fused.running_sums import larger, sums_of_segments


@triton.jit
def boundaries_kernel(
    reached_ptr, norm_ptr, dots_ptr, own_ptr, across_ptr, entry_ptr, origin_ptr, score_ptr, squared_ptr, shift_ptr,
    opened_ptr, carried_ptr, position_ptr, sums_ptr, sequence_ptr, number_ptr, cu_ptr,
    H: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """score and |S|^2 of all tokens, shift -1 for all, and the chunk's `Segments`"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    _, _, first, last = locate(tile, sequence_ptr, number_ptr, cu_ptr, C)
    row = tl.arange(0, C)
    t = first + row
    there = t < last
    size = (last - first).to(tl.int32)
    chunk = tile.to(tl.int64) * H + h
    base = chunk * C
    entry = tl.load(entry_ptr + chunk)
    origin = tl.load(origin_ptr + chunk)

    # which tokens open a segment, and where in this chunk the segment begins that is open before each token
    one = tl.full((), 1, tl.int64)
    reached = tl.load(reached_ptr + base + entry, mask=entry < C, other=0)
    reached = reached | tl.where(entry < C, one << tl.minimum(entry, C - 1), 0)
    opens = (reached >> row) & 1 > 0
    previous = tl.maximum(row - 1, 0)
    opened_before = ((reached >> previous) & 1 > 0) & (row > 0)
    begins = tl.associative_scan(tl.where(opened_before, previous, 0), 0, larger)
    enters = row <= entry
    known = there & enters & (origin < 0)  # scores.py had to make these

    own = tl.load(own_ptr + base + row)
    dots = tl.load(dots_ptr + (base + begins) * C + row, mask=there & (row > entry), other=0.0)
    dots += tl.load(across_ptr + (base + origin) * C + row, mask=there & enters & (origin >= 0), other=0.0)
    grows = tl.where(there, tl.where(opens, own, 2.0 * dots + own), 0.0)
    norm = tl.gather(sums_of_segments(opens.to(tl.int32), grows), previous, 0)
    norm = tl.where(row > 0, norm, 0.0)
    norm += tl.where(enters, tl.load(norm_ptr + base - H * C + origin, mask=origin >= 0, other=0.0), 0.0)
    norm = tl.where(known, tl.load(squared_ptr + t * H + h, mask=known, other=0.0), norm)
    score = tl.where(known, tl.load(score_ptr + t * H + h, mask=known, other=0.0), information(dots, norm, own))
    tl.store(score_ptr + t * H + h, score, mask=there)
    tl.store(squared_ptr + t * H + h, norm, mask=there)
    tl.store(shift_ptr + t * H + h, row * 0 - 1, mask=there)

    # a sequence's first token opens a slot without a boundary; with a single slot, no token opens one
    if M == 1:
        opens = opens & (row < 0)
    segment = tl.cumsum(opens.to(tl.int32), 0)
    sums = sums_of_segments(opens.to(tl.int32), tl.where(there, score, 0.0))
    number = tl.max(segment)
    following = tl.minimum(row + 1, C - 1)
    ends = there & ((row + 1 == size) | ((reached >> following) & 1 > 0))
    if M == 1:
        ends = there & (row + 1 == size)
    tl.store(opened_ptr + chunk, number)
    tl.store(carried_ptr + chunk, tl.sum(tl.where(ends & (segment == 0), sums, 0.0)))
    tl.store(position_ptr + base + segment - 1, row.to(tl.uint8), mask=opens)
    tl.store(position_ptr + base + row, (row * 0 + size).to(tl.uint8), mask=row >= number)
    tl.store(sums_ptr + base + segment - 1, sums, mask=ends & (segment > 0))
    tl.store(sums_ptr + base + row, row * 0.0, mask=row >= number)
