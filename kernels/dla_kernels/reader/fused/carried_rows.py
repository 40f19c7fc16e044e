# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Carries rows over the tiles of their chunk, one tile after the other, and computes the gradient of that.

A tile a of the delta rule turns a state S into `kept_a S - U_a^T K_a S` (delta_chunks.py). Queries are carried back
over the tiles before their own, as rows X with left L = U and right R = K; writes are carried forward over the tiles
after their own, with L = K and R = U:

    M_a = X L_a^T,    X' = kept_a X - M_a R_a                                   M_a of queries is their part of Mx
    dM_a = dMx - dX' R_a^T,    dX = kept_a dX' + dM_a L_a
    dL_a = sum_X dM_a^T X,     dR_a = -sum_X M_a^T dX',     dkept_a = sum_X X . dX'

A program carries the rows of one tile, in float32, in registers; factors of products are rounded to the type of L and
R. X before and dX' after each tile (the trails) are stored for the sums over X, which go tile by tile and need no
atomics.

Everything is head-major and in full tiles, `[H, tiles TILE, K]`: missing tokens are zeros. Only what chunks are read
and written with, and its gradient, is in the order of the batch: Mx `[tokens, H, LONG]`, and Qe and U `[tokens, H, K]`,
which are X at the end of its way.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.configs import exact_products, key_blocks
from dla_kernels.reader.fused.pieces import Pieces, locate_tile


def carry_rows(
    x: Tensor, left: Tensor, right: Tensor, kept: Tensor, pieces: Pieces, *, up: bool, within: Tensor | None = None,
    own: Tensor | None = None, trail: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """X at the chunk's start (`up`: end), `[tokens, H, K]` in the products' type.

    left, right `[H, tiles TILE, K]` in the products' type; x alike in float32; kept `[H, tiles]` float32. Filled if given:
    within = Mx `[tokens, H, LONG]`, with its diagonal blocks from own `[H, tiles, TILE, TILE]` float32; and trail
    `[LONG / TILE, H, tiles TILE, K]`, X before each tile.
    """
    out = torch.empty(pieces.tokens, len(x), x.shape[2], dtype=left.dtype, device=x.device)
    carry_rows_kernel[(kept.shape[1], len(x))](
        x, left, right, kept, out, left if within is None else within, kept if own is None else own,
        left if trail is None else trail, *chunks_of(pieces), x.shape[1],
        HAS_WITHIN=within is not None, HAS_TRAIL=trail is not None, UP=up, **_sizes(left, pieces),
    )  # fmt: skip
    return out


def carry_rows_backward(
    dx: Tensor, left: Tensor, right: Tensor, kept: Tensor, trail: Tensor, before: Tensor, dleft: Tensor, dright: Tensor,
    pieces: Pieces, *, up: bool, plus: Tensor | None = None, dwithin: Tensor | None = None, d_own: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """dkept `[H, tiles]` float32.

    dx `[tokens, H, K]` is in the products' type; `plus`, shaped like `before`, is added to it. `before`
    `[H, tiles TILE, K]` float32 is filled with dX before the carry. dL and dR are then added to dleft and dright, which
    are shaped like `before`; either may be `before` itself. trail: as carry_rows filled it. d_own
    `[H, tiles, TILE, TILE]` float32, given with dwithin, is filled with the diagonal blocks of dMx.
    """
    heads, tiles = kept.shape
    dtrail = torch.empty_like(trail)
    parts = torch.zeros(heads, tiles, pieces.long // pieces.tile, dtype=torch.float32, device=dx.device)
    ext = left if dwithin is None else dwithin
    where = *chunks_of(pieces), left.shape[1]
    sizes = _sizes(left, pieces) | {"UP": up}
    carry_rows_backward_kernel[(tiles, heads)](
        dx, before if plus is None else plus, left, right, kept, ext, trail, before, dtrail, parts,
        kept if d_own is None else d_own, *where, HAS_PLUS=plus is not None, HAS_WITHIN=dwithin is not None, **sizes,
    )  # fmt: skip
    for into, factor, with_factor, summed, has_within in (
        (dleft, right, dtrail, trail, dwithin is not None), (dright, left, trail, dtrail, False),
    ):  # fmt: skip
        carried_columns_kernel[(tiles, heads)](
            factor, with_factor, summed, ext, into, *where, HAS_WITHIN=has_within, **sizes
        )
    return parts.sum(-1)


def chunks_of(pieces: Pieces) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tables that `locate_in_chunk` needs."""
    return pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk


def _sizes(factor: Tensor, pieces: Pieces) -> dict[str, Any]:
    heads, _, key_dim = factor.shape
    first, second = key_blocks(key_dim)
    return {
        "H": heads, "K": key_dim, "TILE": pieces.tile, "LONG": pieces.long, "B1": first, "B2": second,
        "PRECISION": exact_products(factor.dtype), "num_warps": 4, "num_stages": 1,
    }  # fmt: skip


@triton.jit
def locate_in_chunk(tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE: tl.constexpr, LONG: tl.constexpr):
    """The chunk of a tile, the tile's number in the chunk, the chunk's number of tiles, its first token and the one
    after its last."""
    n, chunk, _, number, first, _, _ = locate_tile(tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG)
    last = tl.minimum(first + LONG, tl.load(cu_ptr + n + 1))
    return chunk, number, ((last - first + TILE - 1) // TILE).to(tl.int32), first, last


@triton.jit
def rows_at(ptr, base, K: tl.constexpr, TILE: tl.constexpr, START: tl.constexpr, B: tl.constexpr):
    """`[TILE, B]`: columns START.. of the rows from `base` on."""
    i = START + tl.arange(0, B)
    at = tl.arange(0, TILE)[:, None] * K + i[None, :]
    return tl.load(ptr + base * K + at, mask=(i < K)[None, :], other=0.0)


@triton.jit
def rows_transposed(ptr, base, K: tl.constexpr, TILE: tl.constexpr, START: tl.constexpr, B: tl.constexpr):
    """The same as `[B, TILE]`."""
    i = START + tl.arange(0, B)
    at = tl.arange(0, TILE)[None, :] * K + i[:, None]
    return tl.load(ptr + base * K + at, mask=(i < K)[:, None], other=0.0)


@triton.jit
def store_rows(ptr, base, x, K: tl.constexpr, TILE: tl.constexpr, START: tl.constexpr, B: tl.constexpr):
    """Store what `rows_at` loads."""
    i = START + tl.arange(0, B)
    at = tl.arange(0, TILE)[:, None] * K + i[None, :]
    tl.store(ptr + base * K + at, x.to(ptr.dtype.element_ty), mask=(i < K)[None, :])


@triton.jit
def tokens_at(
    first, last, h, H: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, START: tl.constexpr, B: tl.constexpr
):
    """For a head's TILE tokens from `first` on in `[tokens, H, K]`: where they begin, the offsets of their columns
    START.. from there, and which of them exist; `last`: the token after the chunk's last one."""
    i = START + tl.arange(0, B)
    row = tl.arange(0, TILE)
    at = row[:, None] * (H * K) + i[None, :]
    return (first * H + h) * K, at, (first + row < last)[:, None] & (i < K)[None, :]


@triton.jit
def load_tokens(
    ptr, first, last, h, H: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, START: tl.constexpr, B: tl.constexpr
):
    """Columns START.. of a head's tokens, `[TILE, B]`, zeros for missing tokens."""
    begin, at, there = tokens_at(first, last, h, H, K, TILE, START, B)
    return tl.load(ptr + begin + at, mask=there, other=0.0)


@triton.jit
def store_tokens(
    ptr, first, last, h, x, H: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, START: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """Store what `load_tokens` loads."""
    begin, at, there = tokens_at(first, last, h, H, K, TILE, START, B)
    tl.store(ptr + begin + at, x.to(ptr.dtype.element_ty), mask=there)


@triton.jit
def within_block(
    first, last, t_tile, j_tile, h, H: tl.constexpr, LONG: tl.constexpr, TILE: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """For Mx of a pair of tiles: where it begins, the offsets of its numbers `[t, j]` (transposed: `[j, t]`) from
    there, and which of them are of existing tokens t."""
    row = tl.arange(0, TILE)
    begin = ((first + t_tile * TILE) * H + h) * LONG + j_tile * TILE
    there = first + t_tile * TILE + row < last
    if TRANSPOSED:
        return begin, row[None, :] * (H * LONG) + row[:, None], there[None, :]
    else:
        return begin, row[:, None] * (H * LONG) + row[None, :], there[:, None]


@triton.jit
def carry_rows_kernel(
    x_ptr, left_ptr, right_ptr, kept_ptr, out_ptr, within_ptr, own_ptr, trail_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, rows,
    H: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr,
    HAS_WITHIN: tl.constexpr, HAS_TRAIL: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """X' = kept_a X - (X L_a^T) R_a, from tile to tile"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    _, b, count, first, last = locate_in_chunk(tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG)
    dtype = left_ptr.dtype.element_ty
    base = h * rows + tile * TILE
    x1 = rows_at(x_ptr, base, K, TILE, 0, B1).to(tl.float32)
    if B2 > 0:
        x2 = rows_at(x_ptr, base, K, TILE, B1, B2).to(tl.float32)
    for step in range(0, count - 1 - b if UP else b):
        a = b + 1 + step if UP else b - 1 - step
        other = tile + a - b
        source = h * rows + other * TILE
        kept = tl.load(kept_ptr + h * (rows // TILE) + other)
        product = tl.dot(x1.to(dtype), rows_transposed(left_ptr, source, K, TILE, 0, B1), input_precision=PRECISION)
        if B2 > 0:
            product += tl.dot(
                x2.to(dtype), rows_transposed(left_ptr, source, K, TILE, B1, B2), input_precision=PRECISION
            )
        if HAS_WITHIN:
            begin, at, there = within_block(first, last, b, a, h, H, LONG, TILE, False)
            tl.store(within_ptr + begin + at, product.to(dtype), mask=there)
        if HAS_TRAIL:
            store_rows(trail_ptr, (a * H).to(tl.int64) * rows + base, x1, K, TILE, 0, B1)
        taken = product.to(dtype)
        if B2 > 0:
            if HAS_TRAIL:
                store_rows(trail_ptr, (a * H).to(tl.int64) * rows + base, x2, K, TILE, B1, B2)
            x2 = kept * x2 - tl.dot(taken, rows_at(right_ptr, source, K, TILE, B1, B2), input_precision=PRECISION)
        x1 = kept * x1 - tl.dot(taken, rows_at(right_ptr, source, K, TILE, 0, B1), input_precision=PRECISION)
    store_tokens(out_ptr, first + b * TILE, last, h, x1, H, K, TILE, 0, B1)
    if B2 > 0:
        store_tokens(out_ptr, first + b * TILE, last, h, x2, H, K, TILE, B1, B2)
    if HAS_WITHIN:
        square = (h * (rows // TILE) + tile) * (TILE * TILE)
        square += tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
        begin, at, there = within_block(first, last, b, b, h, H, LONG, TILE, False)
        tl.store(within_ptr + begin + at, tl.load(own_ptr + square).to(dtype), mask=there)


@triton.jit
def carry_rows_backward_kernel(
    dx_ptr, plus_ptr, left_ptr, right_ptr, kept_ptr, dwithin_ptr, trail_ptr, before_ptr, dtrail_ptr, parts_ptr,
    d_own_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, rows,
    H: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr,
    HAS_PLUS: tl.constexpr, HAS_WITHIN: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dX = kept_a dX' + (dMx - dX' R_a^T) L_a, from tile to tile the other way around; sums of X . dX'"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    _, b, count, first, last = locate_in_chunk(tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG)
    dtype = left_ptr.dtype.element_ty
    base = h * rows + tile * TILE
    dx1 = load_tokens(dx_ptr, first + b * TILE, last, h, H, K, TILE, 0, B1).to(tl.float32)
    if HAS_PLUS:
        dx1 += rows_at(plus_ptr, base, K, TILE, 0, B1)
    if B2 > 0:
        dx2 = load_tokens(dx_ptr, first + b * TILE, last, h, H, K, TILE, B1, B2).to(tl.float32)
        if HAS_PLUS:
            dx2 += rows_at(plus_ptr, base, K, TILE, B1, B2)
    for step in range(0, count - 1 - b if UP else b):
        a = count - 1 - step if UP else step
        other = tile + a - b
        source = h * rows + other * TILE
        along = (a * H).to(tl.int64) * rows + base
        kept = tl.load(kept_ptr + h * (rows // TILE) + other)
        product = -tl.dot(dx1.to(dtype), rows_transposed(right_ptr, source, K, TILE, 0, B1), input_precision=PRECISION)
        store_rows(dtrail_ptr, along, dx1, K, TILE, 0, B1)
        inner = tl.sum(dx1 * rows_at(trail_ptr, along, K, TILE, 0, B1).to(tl.float32))
        if B2 > 0:
            product -= tl.dot(
                dx2.to(dtype), rows_transposed(right_ptr, source, K, TILE, B1, B2), input_precision=PRECISION
            )
            store_rows(dtrail_ptr, along, dx2, K, TILE, B1, B2)
            inner += tl.sum(dx2 * rows_at(trail_ptr, along, K, TILE, B1, B2).to(tl.float32))
        if HAS_WITHIN:
            begin, at, there = within_block(first, last, b, a, h, H, LONG, TILE, False)
            product += tl.load(dwithin_ptr + begin + at, mask=there, other=0.0).to(tl.float32)
        taken = product.to(dtype)
        dx1 = kept * dx1 + tl.dot(taken, rows_at(left_ptr, source, K, TILE, 0, B1), input_precision=PRECISION)
        if B2 > 0:
            dx2 = kept * dx2 + tl.dot(taken, rows_at(left_ptr, source, K, TILE, B1, B2), input_precision=PRECISION)
        tl.store(parts_ptr + (h * (rows // TILE) + other) * (LONG // TILE) + b, inner)
    store_rows(before_ptr, base, dx1, K, TILE, 0, B1)
    if B2 > 0:
        store_rows(before_ptr, base, dx2, K, TILE, B1, B2)
    if HAS_WITHIN:
        square = (h * (rows // TILE) + tile) * (TILE * TILE)
        square += tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
        begin, at, there = within_block(first, last, b, b, h, H, LONG, TILE, False)
        tl.store(d_own_ptr + square, tl.load(dwithin_ptr + begin + at, mask=there, other=0.0).to(tl.float32))


@triton.jit
def carried_columns_kernel(
    factor_ptr, with_factor_ptr, summed_ptr, dwithin_ptr, out_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, rows,
    H: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr,
    HAS_WITHIN: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out += the sum, over the tiles b whose rows were carried over tile a, of (dMx_b^T - F_a Y_b^T) Z_b. This is dL
    with F, Y, Z = R, dX', X; and dR with L, X, dX' and without dMx"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    _, a, count, first, last = locate_in_chunk(tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG)
    dtype = factor_ptr.dtype.element_ty
    base = h * rows + tile * TILE
    acc1 = rows_at(out_ptr, base, K, TILE, 0, B1)
    if B2 > 0:
        acc2 = rows_at(out_ptr, base, K, TILE, B1, B2)
    for step in range(0, a if UP else count - 1 - a):
        b = step if UP else a + 1 + step
        along = (a * H).to(tl.int64) * rows + h * rows + (tile + b - a) * TILE
        product = -tl.dot(
            rows_at(factor_ptr, base, K, TILE, 0, B1), rows_transposed(with_factor_ptr, along, K, TILE, 0, B1),
            input_precision=PRECISION,
        )  # fmt: skip
        if B2 > 0:
            product -= tl.dot(
                rows_at(factor_ptr, base, K, TILE, B1, B2), rows_transposed(with_factor_ptr, along, K, TILE, B1, B2),
                input_precision=PRECISION,
            )  # fmt: skip
        if HAS_WITHIN:
            begin, transposed, there = within_block(first, last, b, a, h, H, LONG, TILE, True)
            product += tl.load(dwithin_ptr + begin + transposed, mask=there, other=0.0).to(tl.float32)
        taken = product.to(dtype)
        acc1 += tl.dot(taken, rows_at(summed_ptr, along, K, TILE, 0, B1), input_precision=PRECISION)
        if B2 > 0:
            acc2 += tl.dot(taken, rows_at(summed_ptr, along, K, TILE, B1, B2), input_precision=PRECISION)
    store_rows(out_ptr, base, acc1, K, TILE, 0, B1)
    if B2 > 0:
        store_rows(out_ptr, base, acc2, K, TILE, B1, B2)
