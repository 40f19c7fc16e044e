# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""What is left to do when every chunk's first boundary is known, by all chunks at once: the other boundaries, the scores,
and the lists of segments that merges.py goes through."""

from __future__ import annotations

import triton
import triton.language as tl

from dla_kernels.reader.fused.pieces import locate
from dla_kernels.segmentation.fused.paths import information, inside_chunk


@triton.jit
def boundaries_kernel(
    k_ptr, v_ptr, next_ptr, norm_ptr, own_ptr, across_ptr, entry_ptr, origin_ptr, score_ptr, squared_ptr, shift_ptr,
    opened_ptr, carried_ptr, position_ptr, sums_ptr, sequence_ptr, number_ptr, cu_ptr,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """score and |S|^2 of all tokens, shift -1 for all, and the chunk's `Segments`"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    g = h // (H // G)
    _, _, first, last = locate(tile, sequence_ptr, number_ptr, cu_ptr, C)
    row = tl.arange(0, C)
    t = first + row
    there = t < last
    chunk = tile.to(tl.int64) * H + h
    base = chunk * C
    entry = tl.load(entry_ptr + chunk)
    origin = tl.load(origin_ptr + chunk)

    # tokens up to the first boundary
    if origin < 0:  # scores.py had to make them
        score = tl.load(score_ptr + t * H + h, mask=there & (row <= entry), other=0.0)
        norm = tl.load(squared_ptr + t * H + h, mask=there & (row <= entry), other=0.0)
    else:
        own = tl.load(own_ptr + base + row)
        dots = tl.load(across_ptr + (base + origin) * C + row)
        grows = tl.where(there, 2.0 * dots + own, 0.0)
        norm = tl.load(norm_ptr + base - H * C + origin) + tl.cumsum(grows, 0) - grows
        score = information(dots, norm, own)

    # from there on
    opens = row < 0
    if entry < C:
        one = tl.full((), 1, tl.int64)
        reached = one << entry
        p = tl.load(next_ptr + base + entry).to(tl.int32)
        while p < C:
            reached = reached | (one << p)
            p = tl.load(next_ptr + base + p).to(tl.int32)
        opens = ((reached >> row) & 1) > 0
        # where the segment begins that a token is compared with
        begins = tl.max(tl.where(opens[:, None] & (row[:, None] < row[None, :]), row[:, None], 0), 0)
        dots_inside, norms_inside, _end, own_inside = inside_chunk(
            k_ptr, v_ptr, h, g, t, last, H, G, K, V, C, BK, BV, PRECISION
        )
        chosen = row[:, None] == begins[None, :]
        squared = tl.sum(tl.where(chosen, norms_inside, 0.0), 0)
        inside = information(tl.sum(tl.where(chosen, dots_inside, 0.0), 0), squared, own_inside)
        score = tl.where(row > entry, inside, score)
        norm = tl.where(row > entry, squared, norm)
    tl.store(score_ptr + t * H + h, score, mask=there)
    tl.store(squared_ptr + t * H + h, norm, mask=there)
    tl.store(shift_ptr + t * H + h, row * 0 - 1, mask=there)

    # the first token of a sequence opens a slot without a boundary; with one slot in all, no token does
    if M == 1:
        opens = opens & (row < 0)
    segment = tl.cumsum(opens.to(tl.int32), 0)
    score = tl.where(there, score, 0.0)
    member = segment[:, None] == (row + 1)[None, :]
    size = (last - first).to(tl.int32)
    tl.store(opened_ptr + chunk, tl.max(segment))
    tl.store(carried_ptr + chunk, tl.sum(tl.where(segment == 0, score, 0.0)))
    tl.store(position_ptr + base + row, tl.min(tl.where(member, row[:, None], size), 0).to(tl.uint8))
    tl.store(sums_ptr + base + row, tl.sum(tl.where(member, score[:, None], 0.0), 0))
