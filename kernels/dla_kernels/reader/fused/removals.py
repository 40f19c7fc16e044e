# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""R, by which a chunk removes from a state, for the delta rule, and its gradient.

    R = sum_a f_a U_a^T K_a over the chunk's tiles;      dU_a = f_a K_a dR^T,   dK_a = f_a U_a dR,   df_a = sum K_a . (U_a dR)

U is that of the chunk's end, K counts from the tile's start, and f is the decay from the chunk's start to the tile's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.carried_rows import chunks_of, locate_in_chunk
from dla_kernels.reader.fused.configs import exact_products
from dla_kernels.reader.fused.pieces import Pieces


def removals(write: Tensor, keys: Tensor, from_start: Tensor, pieces: Pieces) -> Tensor:
    """R `[chunks, H, K, K]`; write = U `[tokens, H, K]`, keys = K `[H, tiles TILE, K]`, all of one type, from_start = f `[H, tiles]`."""
    heads, rows, key_dim = keys.shape
    sizes = _sizes(keys, pieces)
    blocks = triton.cdiv(key_dim, sizes["BLOCK"])
    found = torch.empty(pieces.chunks, heads, key_dim, key_dim, dtype=keys.dtype, device=keys.device)
    removals_kernel[(pieces.tiles, heads, blocks * blocks)](
        write, keys, from_start, found, *chunks_of(pieces), rows, **sizes
    )
    return found


def removals_backward(
    dremoval: Tensor, write: Tensor, keys: Tensor, from_start: Tensor, pieces: Pieces
) -> tuple[Tensor, Tensor, Tensor]:
    """dU, dK `[H, tiles TILE, K]` and df `[H, tiles]`, float32; dremoval `[chunks, H, K, K]`, the rest as for `removals`."""
    heads, rows, key_dim = keys.shape
    sizes = _sizes(keys, pieces)
    blocks = triton.cdiv(key_dim, sizes["BLOCK"])
    dwrite, dkeys = (torch.empty(keys.shape, dtype=torch.float32, device=keys.device) for _ in range(2))
    parts = torch.empty(blocks, *from_start.shape, dtype=torch.float32, device=keys.device)
    for into, x, other, transposed in ((dwrite, keys, write, True), (dkeys, write, keys, False)):
        removals_backward_kernel[(pieces.tiles, heads, blocks)](
            dremoval, x, other, from_start, into, parts, *chunks_of(pieces), rows, TRANSPOSED=transposed, **sizes
        )
    return dwrite, dkeys, parts.sum(0)


def _sizes(factor: Tensor, pieces: Pieces) -> dict[str, Any]:
    heads, _, key_dim = factor.shape
    block = max(16, min(64, triton.next_power_of_2(key_dim)))
    return {
        "H": heads, "K": key_dim, "TILE": pieces.tile, "LONG": pieces.long, "BLOCK": block,
        "PRECISION": exact_products(factor.dtype), "num_warps": 4, "num_stages": 1,
    }  # fmt: skip


@triton.jit
def removals_kernel(
    write_ptr, keys_ptr, kept_ptr, removal_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, rows,
    H: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """R = sum_a f_a U_a^T K_a: by the program of the chunk's first tile"""
    BLOCKS: tl.constexpr = (K + BLOCK - 1) // BLOCK
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    chunk, number, count, first, last = locate_in_chunk(
        tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    if number == 0:
        row = tl.arange(0, TILE)
        i = (tl.program_id(2) // BLOCKS) * BLOCK + tl.arange(0, BLOCK)
        k = (tl.program_id(2) % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
        acc = tl.zeros((BLOCK, BLOCK), tl.float32)
        for a in range(0, count):
            base = (h * rows + (tile + a) * TILE) * K
            t = first + a * TILE
            there = (t + row < last)[None, :] & (i < K)[:, None]
            u = tl.load(write_ptr + (t * H + h) * K + row[None, :] * (H * K) + i[:, None], mask=there, other=0.0)
            key = tl.load(keys_ptr + base + row[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)
            kept = tl.load(kept_ptr + h * (rows // TILE) + tile + a)
            acc += kept * tl.dot(u, key, input_precision=PRECISION)  # [BLOCK, TILE] @ [TILE, BLOCK] -> [BLOCK, BLOCK]
        at = (chunk * H + h) * (K * K) + i[:, None] * K + k[None, :]
        tl.store(removal_ptr + at, acc.to(removal_ptr.dtype.element_ty), mask=(i < K)[:, None] & (k < K)[None, :])


@triton.jit
def removals_backward_kernel(
    dremoval_ptr, x_ptr, other_ptr, kept_ptr, out_ptr, parts_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, rows,
    H: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr,
    BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """f X dR for a block of columns: dK with X = U, which is stored by token; dU with X = K and, TRANSPOSED, dR^T. With
    dK also the block's part of df"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    chunk, number, _, first, last = locate_in_chunk(tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG)
    t = first + number * TILE
    row = tl.arange(0, TILE)
    k = part * BLOCK + tl.arange(0, BLOCK)
    base = (h * rows + tile * TILE) * K
    matrix_ptr = dremoval_ptr + (chunk * H + h) * (K * K)
    acc = tl.zeros((TILE, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        i = start + tl.arange(0, BLOCK)
        if TRANSPOSED:
            x = tl.load(x_ptr + base + row[:, None] * K + i[None, :], mask=(i < K)[None, :], other=0.0)
        else:
            there = (t + row < last)[:, None] & (i < K)[None, :]
            x = tl.load(x_ptr + (t * H + h) * K + row[:, None] * (H * K) + i[None, :], mask=there, other=0.0)
        at = k[None, :] * K + i[:, None] if TRANSPOSED else i[:, None] * K + k[None, :]
        matrix = tl.load(matrix_ptr + at, mask=(i < K)[:, None] & (k < K)[None, :], other=0.0)
        acc += tl.dot(x, matrix, input_precision=PRECISION)  # [TILE, BLOCK] @ [BLOCK, BLOCK] -> [TILE, BLOCK]
    at = base + row[:, None] * K + k[None, :]
    inside = (k < K)[None, :]
    if not TRANSPOSED:
        other = tl.load(other_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(parts_ptr + (part * H + h) * (rows // TILE) + tile, tl.sum(other * acc))
    tl.store(out_ptr + at, tl.load(kept_ptr + h * (rows // TILE) + tile) * acc, mask=inside)
