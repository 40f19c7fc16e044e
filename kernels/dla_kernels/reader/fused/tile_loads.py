# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Loads of a tile's rows, in both orientations, and products of two tiles.

Offsets inside a tile have 32 bits: a tile of 64-bit ones would take half the registers. A tile that is known to be
full, as every tile but a chunk's last is, needs no mask for its rows: `rows=None`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(
    ptr, first, rows, columns, STRIDE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """`[TILE, columns]` of the WIDTH columns from `ptr` on of a matrix `[*, STRIDE]`: rows from `first` on, the first
    `rows` of them (None: all), zeros elsewhere. `columns`: one of the blocks that WIDTH is cut into."""
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
    """The same as `[columns, TILE]`, loaded in that orientation, because results of products must not be transposed
    (TRITON-PITFALLS.md)."""
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

    `left` `[TILE, BLOCK]` and `right` `[BLOCK, TILE]` are the first blocks of columns. A kernel that goes through many
    tiles j loads `left` once, before its loop, and `right` together with everything else of a tile, so that one wait
    covers all of these loads. Not used in float32, whose products would keep both in registers.
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
