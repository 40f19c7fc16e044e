# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The scores of a chunk's tokens, for every token of the previous chunk at which the open segment may begin.

`k_t^T S v_t = sum_j (k_j . k_t)(v_j . v_t)` over j from the segment's first token p on. The part of the sum in this
chunk is known (paths.py), and one more Gram matrix `[C, C]` gives the other part for all p. So the first boundary of
the chunk is known for each p before the actual p is known.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dla_kernels.reader.fused.pieces import locate
from dla_kernels.segmentation.fused.paths import information, products
from dla_kernels.segmentation.fused.running_sums import sums_before, sums_from


@triton.jit
def entries_kernel(
    k_ptr, v_ptr, threshold_ptr, norm_ptr, dots_ptr, own_ptr, final_ptr, across_ptr, entries_ptr, sequence_ptr, number_ptr,
    cu_ptr,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """For each token p of the previous chunk: `k_t^T S v_t`; and, as one number, the chunk's first boundary (C if none)
    plus 256 times the last boundary that follows from it in the chunk."""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    g = h // (H // G)
    _, number, first, last = locate(tile, sequence_ptr, number_ptr, cu_ptr, C)
    if number > 0:
        row = tl.arange(0, C)
        t = first + row
        base = (tile.to(tl.int64) * H + h) * C
        before = base - H * C
        PART: tl.constexpr = tl.bfloat16 if k_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
        across = products(k_ptr, g, t - C, first, t, last, G, K, C, BK, PRECISION)
        across *= products(v_ptr, h, t - C, first, t, last, H, V, C, BV, PRECISION)
        across = sums_from(across, C, PART, SUMS) + tl.load(dots_ptr + base * C + row)[None, :]
        tl.store(across_ptr + (base + row)[:, None] * C + row[None, :], across)
        own = tl.load(own_ptr + base + row)[None, :]
        grows = tl.where((t < last)[None, :], 2.0 * across + own, 0.0)
        norms = tl.load(norm_ptr + before + row)[:, None] + sums_before(grows, C, PART, SUMS)
        hit = (t < last)[None, :] & (information(across, norms, own) >= tl.load(threshold_ptr + h))
        if M == 1:
            hit = hit & (row < 0)[None, :]
        entry = tl.min(tl.where(hit, row[None, :], C), 1)
        onward = tl.load(final_ptr + base + entry, mask=entry < C, other=0).to(tl.int32)
        tl.store(entries_ptr + base + row, entry + 256 * onward)
