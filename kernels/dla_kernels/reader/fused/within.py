# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""How token j is read at token t of the same chunk but for the weights: decays, and the matrix Mx where it is stored.

Plain decay: `Mx[t, j] = scale (q_t . k_j) exp(G_t - G_j)`, made where it is needed. Tokens of two tiles meet at a token r
between them, the last one of j's tile or the one before t's: `exp(G_t - G_j) = exp(G_t - G_r) exp(G_r - G_j)`, a column and
a row. G never rises, so neither factor is above one. Delta rule: a matrix `[tokens, H, LONG]` that delta_chunks.py has made.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decays_since(total_ptr, first, rows, reference, TILE: tl.constexpr):
    """`exp(G_t - G_r)` of a tile's tokens after r, 0 for those that are not there; `reference` is G_r, total_ptr a head's."""
    row = tl.arange(0, TILE)
    return tl.exp(tl.load(total_ptr + first + row, mask=row < rows, other=float("-inf")) - reference)


@triton.jit
def decays_until(total_ptr, first, reference, TILE: tl.constexpr):
    """`exp(G_r - G_j)` of a full tile's tokens up to r."""
    return tl.exp(reference - tl.load(total_ptr + first + tl.arange(0, TILE)))


@triton.jit
def own_decays(total_ptr, first, rows, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """`exp(G_t - G_j)` `[TILE, TILE]` of the tokens of one tile, rows t (TRANSPOSED: rows j), 0 for j > t."""
    row = tl.arange(0, TILE)
    total = tl.load(total_ptr + first + row, mask=row < rows, other=0.0)
    if TRANSPOSED:
        between = total[None, :] - total[:, None]
    else:
        between = total[:, None] - total[None, :]
    return tl.exp(tl.where(causal(rows, TILE, TRANSPOSED), between, float("-inf")))


@triton.jit
def causal(rows, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Which pairs of one tile there are: j up to t, t among the first `rows`; rows t (TRANSPOSED: rows j)."""
    row = tl.arange(0, TILE)
    if TRANSPOSED:
        return (row[:, None] <= row[None, :]) & (row < rows)[None, :]
    else:
        return (row[None, :] <= row[:, None]) & (row < rows)[:, None]


@triton.jit
def stored_tile(t, j, H: tl.constexpr, LONG: tl.constexpr, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Where the pairs of two tiles are in Mx, from the chunk's first row on; t, j: where the tiles begin in the chunk.
    32 bits."""
    row = tl.arange(0, TILE)
    if TRANSPOSED:
        return (t + row)[None, :] * (H * LONG) + (j + row)[:, None]
    else:
        return (t + row)[:, None] * (H * LONG) + (j + row)[None, :]
