# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Rows of a tile from memory, in both orientations, and the products of two tiles.

Offsets inside a tile are 32 bits: a tile of 64-bit ones takes half the registers. A tile that is known to be full, as all
tiles before another of their chunk are, needs no mask for its rows, which is `rows=None`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(
    ptr, first, rows, columns, STRIDE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """`[TILE, columns]` of a matrix `[*, STRIDE]`, of which WIDTH columns from `ptr` on are meant: its rows from `first` on,
    the first `rows` of them (None: all), zeros elsewhere. `columns`: a whole block of WIDTH cut into blocks of its length."""
    row = tl.arange(0, TILE)
    at = ptr + first * STRIDE + row[:, None] * STRIDE + columns[None, :]
    BLOCK: tl.constexpr = columns.shape[0]
    EVEN: tl.constexpr = (BLOCK + WIDTH) % BLOCK == 0  # the interpreter has no int % constexpr
    if rows is None and EVEN:
        return tl.load(at)
    elif rows is None:
        return tl.load(at, mask=(columns < WIDTH)[None, :], other=0.0)
    elif EVEN:
        return tl.load(at, mask=(row < rows)[:, None], other=0.0)
    else:
        return tl.load(at, mask=(row < rows)[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def load_tile_transposed(
    ptr, first, rows, columns, STRIDE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """The same as `[columns, TILE]`, loaded that way around: transposed results of products are to be avoided (TRITON-PITFALLS.md)."""
    row = tl.arange(0, TILE)
    at = ptr + first * STRIDE + row[None, :] * STRIDE + columns[:, None]
    BLOCK: tl.constexpr = columns.shape[0]
    EVEN: tl.constexpr = (BLOCK + WIDTH) % BLOCK == 0  # the interpreter has no int % constexpr
    if rows is None and EVEN:
        return tl.load(at)
    elif rows is None:
        return tl.load(at, mask=(columns < WIDTH)[:, None], other=0.0)
    elif EVEN:
        return tl.load(at, mask=(row < rows)[None, :], other=0.0)
    else:
        return tl.load(at, mask=(row < rows)[None, :] & (columns < WIDTH)[:, None], other=0.0)


@triton.jit
def tile_products(
    left, left_ptr, left_first, left_rows, right, right_ptr, right_first, right_rows,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`a_t . b_j` `[TILE, TILE]` float32 over WIDTH columns, for rows t of one matrix `[*, LEFT]` and j of another `[*, RIGHT]`.

    `left` `[TILE, BLOCK]` and `right` `[BLOCK, TILE]` are the first blocks of columns. A kernel that meets many tiles j loads
    `left` once, before its loop, and `right` together with all else of a tile: what one product waits for, the next has then.
    Not used in float32, whose products would keep both in registers.
    """
    column = tl.arange(0, BLOCK)
    HELD: tl.constexpr = 0 if left.dtype == tl.float32 else BLOCK
    products = tl.zeros((TILE, TILE), tl.float32)
    if HELD > 0:
        products += tl.dot(left, right, input_precision=PRECISION)  # [TILE, BLOCK] @ [BLOCK, TILE] -> [TILE, TILE]
    for start in range(HELD, WIDTH, BLOCK):
        a = load_tile(left_ptr, left_first, left_rows, start + column, LEFT, WIDTH, TILE)
        b = load_tile_transposed(right_ptr, right_first, right_rows, start + column, RIGHT, WIDTH, TILE)
        products += tl.dot(a, b, input_precision=PRECISION)
    return products
