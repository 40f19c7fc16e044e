# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Mx, how token j is read at token t of the same chunk, tile by tile and in both orientations.

Plain decay: `Mx[t, j] = scale (q_t . k_j) exp(G_t - G_j)`, made where it is needed. Delta rule (STORED): a matrix
`[tokens, H, LONG]` that transitions.py has made. Both are zero for j > t.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def totals(total_ptr, tokens, h, t, last):
    """G of tokens t; 0 for those that are not there."""
    return tl.load(total_ptr + h * tokens + t, mask=t < last, other=0.0)


@triton.jit
def decays(total_t, total_j, allowed):
    """`exp(G_t - G_j)` where allowed, else 0; G_t and G_j shaped to broadcast."""
    return tl.exp(tl.where(allowed, total_t - total_j, float("-inf")))


@triton.jit
def stored_offset(t, j, chunk_first, H: tl.constexpr, LONG: tl.constexpr):
    """Where Mx[t, j] is, from the chunk's first row: 32 bits, since a tile of 64-bit offsets takes half the registers."""
    return (t - chunk_first).to(tl.int32) * (H * LONG) + (j - chunk_first).to(tl.int32)


@triton.jit
def within_tile(
    q_ptr, k_ptr, within_ptr, total_ptr, tokens, h, t, t_last, j, j_last, chunk_first, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, LONG: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    STORED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`Mx[t, j]` `[TILE, TILE]` float32, 0 outside the tiles and for j > t."""
    rows = t[:, None]
    columns = j[None, :]
    allowed = (rows < t_last) & (columns < j_last) & (columns <= rows)
    if STORED:
        at = stored_offset(rows, columns, chunk_first, H, LONG)
        return tl.load(within_ptr + (chunk_first * H + h) * LONG + at, mask=allowed, other=0.0).to(tl.float32)
    else:
        g = h // (H // G)
        scores = tl.zeros((TILE, TILE), tl.float32)
        for start in range(0, K, BK):
            i = start + tl.arange(0, BK)
            q = tl.load(q_ptr + (rows * G + g) * K + i[None, :], mask=(rows < t_last) & (i < K)[None, :], other=0.0)
            k = tl.load(
                k_ptr + (columns * G + g) * K + i[:, None], mask=(columns < j_last) & (i < K)[:, None], other=0.0
            )
            scores += tl.dot(q, k, input_precision=PRECISION)  # [TILE, BK] @ [BK, TILE] -> [TILE, TILE]
        total_t = totals(total_ptr, tokens, h, t, t_last)[:, None]
        return scores * scale * decays(total_t, totals(total_ptr, tokens, h, j, j_last)[None, :], allowed)


@triton.jit
def within_tile_transposed(
    q_ptr, k_ptr, within_ptr, total_ptr, tokens, h, t, t_last, j, j_last, chunk_first, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, LONG: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    STORED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`Mx[t, j]` with j as rows, `[TILE, TILE]` float32."""
    rows = j[:, None]
    columns = t[None, :]
    allowed = (rows < j_last) & (columns < t_last) & (rows <= columns)
    if STORED:
        at = stored_offset(columns, rows, chunk_first, H, LONG)
        return tl.load(within_ptr + (chunk_first * H + h) * LONG + at, mask=allowed, other=0.0).to(tl.float32)
    else:
        g = h // (H // G)
        scores = tl.zeros((TILE, TILE), tl.float32)
        for start in range(0, K, BK):
            i = start + tl.arange(0, BK)
            k = tl.load(k_ptr + (rows * G + g) * K + i[None, :], mask=(rows < j_last) & (i < K)[None, :], other=0.0)
            q = tl.load(
                q_ptr + (columns * G + g) * K + i[:, None], mask=(columns < t_last) & (i < K)[:, None], other=0.0
            )
            scores += tl.dot(k, q, input_precision=PRECISION)  # [TILE, BK] @ [BK, TILE] -> [TILE, TILE]
        total_t = totals(total_ptr, tokens, h, t, t_last)[None, :]
        return scores * scale * decays(total_t, totals(total_ptr, tokens, h, j, j_last)[:, None], allowed)


@triton.jit
def value_products(
    do_ptr, v_ptr, h, t, t_last, j, j_last, H: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`do_t . v_j`, rows t, columns j; swap the arguments for the transpose."""
    products = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, V, BV):
        i = start + tl.arange(0, BV)
        do = tl.load(
            do_ptr + (t * H + h)[:, None] * V + i[None, :], mask=(t < t_last)[:, None] & (i < V)[None, :], other=0.0
        )
        v = tl.load(
            v_ptr + (j * H + h)[None, :] * V + i[:, None], mask=(j < j_last)[None, :] & (i < V)[:, None], other=0.0
        )
        products += tl.dot(do, v, input_precision=PRECISION)  # [TILE, BV] @ [BV, TILE] -> [TILE, TILE]
    return products
