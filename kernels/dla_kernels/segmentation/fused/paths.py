# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The scores of a chunk's tokens, for every token at which the open segment may begin, and the boundaries that follow.

`cos_t = k_t^T S v_t / (|k_t| |v_t| |S|)` with S the sum over the open segment. If that begins at token p of the same
chunk, no state is needed: with the Gram matrix `A[j, t] = (k_j . k_t)(v_j . v_t)`,

    k_t^T S v_t = sum_{p <= j < t} A[j, t]          |S|^2 grows by 2 k_u^T S v_u + |k_u|^2 |v_u|^2 at each token u

So `[C, C]` numbers hold the scores for all p at once, and the next boundary after a boundary at p is known without
knowing anything about earlier chunks. All chunks do this in parallel; across.py does the same for p in the previous
chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dla_kernels.reader.fused.pieces import locate
from dla_kernels.segmentation.fused.running_sums import sums_before, sums_from


@triton.jit
def products(
    x_ptr, group, rows, rows_last, columns, columns_last, GROUPS: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`x_j . x_t`, `[C, C]` float32, for tokens j (rows) and t (columns); 0 for missing tokens.

    16-bit numbers are multiplied directly: their products are exact in float32, in which they are summed.
    """
    acc = tl.zeros((C, C), tl.float32)
    for start in range(0, D, BLOCK):
        i = start + tl.arange(0, BLOCK)
        left = tl.load(
            x_ptr + (rows * GROUPS + group)[:, None] * D + i[None, :],
            mask=(rows < rows_last)[:, None] & (i < D)[None, :],
            other=0.0,
        )
        right = tl.load(
            x_ptr + (columns * GROUPS + group)[None, :] * D + i[:, None],
            mask=(columns < columns_last)[None, :] & (i < D)[:, None],
            other=0.0,
        )
        acc += tl.dot(left, right, input_precision=PRECISION)  # [C, BLOCK] @ [BLOCK, C] -> [C, C]
    return acc


@triton.jit
def information(dots, norms, own):
    """Eq. 13: `I = sqrt(2 - 2 cos)` from `k^T S v`, |S|^2 and |k|^2 |v|^2; the value for orthogonal states if a norm is
    zero.

    Numbers below the normal range of float32 count as zero, because a GPU's rsqrt takes them for zero and gives
    infinity.
    """
    ORTHOGONAL: tl.constexpr = 1.4142135623730951
    SMALLEST: tl.constexpr = 1.1754943508222875e-38
    defined = (own >= SMALLEST) & (norms >= SMALLEST)
    # one after the other: the product of two squared norms may be beyond float32
    cosine = dots * tl.rsqrt(tl.where(defined, own, 1.0)) * tl.rsqrt(tl.where(defined, norms, 1.0))
    return tl.where(defined, tl.sqrt(tl.maximum(2.0 - 2.0 * cosine, 0.0)), ORTHOGONAL)


@triton.jit
def chunk_paths_kernel(
    k_ptr, v_ptr, threshold_ptr, reached_ptr, final_ptr, norm_ptr, dots_ptr, own_ptr, sequence_ptr, number_ptr, cu_ptr,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    STEPS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """For segments that begin at p (rows): `k_t^T S v_t` with S before t (columns), and |S|^2 at the chunk's end. For
    each t: `|k_t|^2 |v_t|^2`. For each p: the boundaries of the chunk that follow from one at p, as bits, and the last
    of them (p if none)."""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    g = h // (H // G)
    _, _, first, last = locate(tile, sequence_ptr, number_ptr, cu_ptr, C)
    row = tl.arange(0, C)
    t = first + row
    base = (tile.to(tl.int64) * H + h) * C
    pairs = products(k_ptr, g, t, last, t, last, G, K, C, BK, PRECISION)
    pairs *= products(v_ptr, h, t, last, t, last, H, V, C, BV, PRECISION)
    own = tl.sum(tl.where(row[:, None] == row[None, :], pairs, 0.0), 1)
    tl.store(own_ptr + base + row, own)
    PART: tl.constexpr = tl.bfloat16 if k_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    dots = sums_from(tl.where(row[:, None] < row[None, :], pairs, 0.0), C, PART, SUMS)
    tl.store(dots_ptr + (base + row)[:, None] * C + row[None, :], dots)
    grows = tl.where(row[:, None] <= row[None, :], 2.0 * dots + own[None, :], 0.0)
    tl.store(norm_ptr + base + row, tl.sum(grows, 1))
    norms = sums_before(grows, C, PART, SUMS)
    hit = (row[:, None] < row[None, :]) & (t < last)[None, :]
    hit = hit & (information(dots, norms, own[None, :]) >= tl.load(threshold_ptr + h))
    if M == 1:
        hit = hit & (row < 0)[None, :]
    following = tl.min(tl.where(hit, row[None, :], C), 1)
    final = tl.where(following < C, following, row)
    reached = (following < C).to(tl.int64) << final
    for _ in tl.static_range(STEPS):  # twice as far each time
        reached = reached | tl.gather(reached, final, 0)
        final = tl.gather(final, final, 0)
    tl.store(reached_ptr + base + row, reached)
    tl.store(final_ptr + base + row, final.to(tl.uint8))
