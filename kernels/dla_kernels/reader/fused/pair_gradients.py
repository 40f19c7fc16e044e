# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""What pairs of tokens add to the gradients of queries and keys, from the gradient dP of their products (plain decay).

dq_t += sum over tokens j of the chunk up to t of dP[t, j] k_j,          dk_j += sum over t from j on of dP[t, j] q_t
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.configs import Tiles, inner_block
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.tile_loads import load_tile
from dla_kernels.reader.fused.within import stored_tile


def add_query_pairs(dq: Tensor, dproducts: Tensor, k: Tensor, pieces: Pieces, tiles: Tiles) -> Tensor:
    """dq (`[tokens, G, K]` in any type) plus what pairs add to it, like k; dproducts `[tokens, G, LONG]`
    (products_backward.py)."""
    total, grid, sizes = torch.empty_like(k), *_launch(k, pieces, tiles)
    query_pairs_kernel[grid](
        dproducts, k, dq, total, pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, **sizes
    )
    return total


def add_key_pairs(dk: Tensor, dproducts: Tensor, q: Tensor, pieces: Pieces, tiles: Tiles) -> Tensor:
    """dk plus what pairs add to it, likewise, from q."""
    total, grid, sizes = torch.empty_like(q), *_launch(q, pieces, tiles)
    key_pairs_kernel[grid](
        dproducts, q, dk, total, pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, **sizes
    )
    return total


def _launch(factor: Tensor, pieces: Pieces, tiles: Tiles) -> tuple[tuple[int, int, int], dict[str, Any]]:
    _, groups, key_dim = factor.shape
    block_k = inner_block(key_dim, tiles)
    sizes = {"G": groups, "K": key_dim, "TILE": pieces.tile, "LONG": pieces.long, "BK": block_k}
    options = {"num_warps": tiles.warps, "num_stages": 1}
    return (pieces.tiles, groups, (key_dim + block_k - 1) // block_k), sizes | {"PRECISION": "ieee"} | options


@triton.jit
def query_pairs_kernel(
    dproducts_ptr, k_ptr, given_ptr, dq_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr,
    G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq_t = what is given + sum_j dP[t, j] k_j"""
    g = tl.program_id(1).to(tl.int64)
    _, _, _, q_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    rows = (last - first).to(tl.int32)
    there = (tl.arange(0, TILE) < rows)[:, None]
    column_k = tl.program_id(2) * BK + tl.arange(0, BK)
    dproducts_ptr += (chunk_first * G + g) * LONG
    k_ptr += g * K
    dq = load_tile(given_ptr + g * K, first, rows, column_k, G * K, K, TILE).to(tl.float32)
    for p in range(0, q_tile):  # earlier tiles are full
        k = load_tile(k_ptr, chunk_first + p * TILE, None, column_k, G * K, K, TILE)
        at = stored_tile(q_tile * TILE, p * TILE, G, LONG, TILE, False)
        dproducts = tl.load(dproducts_ptr + at, mask=there, other=0.0)
        dq += tl.dot(dproducts, k, input_precision=PRECISION)  # [TILE, TILE] @ [TILE, BK] -> [TILE, BK]
    k = load_tile(k_ptr, first, rows, column_k, G * K, K, TILE)
    at = stored_tile(q_tile * TILE, q_tile * TILE, G, LONG, TILE, False)
    dq += tl.dot(tl.load(dproducts_ptr + at, mask=there, other=0.0), k, input_precision=PRECISION)
    at = tl.arange(0, TILE)[:, None] * (G * K) + column_k[None, :]
    tl.store(dq_ptr + (first * G + g) * K + at, dq.to(dq_ptr.dtype.element_ty), mask=there & (column_k < K)[None, :])


@triton.jit
def key_pairs_kernel(
    dproducts_ptr, q_ptr, given_ptr, dk_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr,
    G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk_j = what is given + sum_t dP[t, j] q_t"""
    g = tl.program_id(1).to(tl.int64)
    n, _, _, j_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    chunk_last = tl.minimum(chunk_first + LONG, tl.load(cu_ptr + n + 1))
    rows = (last - first).to(tl.int32)
    column_k = tl.program_id(2) * BK + tl.arange(0, BK)
    dproducts_ptr += (chunk_first * G + g) * LONG
    q_ptr += g * K
    dk = load_tile(given_ptr + g * K, first, rows, column_k, G * K, K, TILE).to(tl.float32)
    own = j_tile.to(tl.int64)  # 64 bits: then one pointer counts for all rows of a tile
    dk = add_keys_of_tile(dk, dproducts_ptr, q_ptr, first, own, j_tile, rows, column_k, G, K, TILE, LONG, PRECISION)
    full = (chunk_last - chunk_first) // TILE
    for p in range(own + 1, full):
        t = chunk_first + p * TILE
        dk = add_keys_of_tile(dk, dproducts_ptr, q_ptr, t, p, j_tile, None, column_k, G, K, TILE, LONG, PRECISION)
    t_rows = (chunk_last - chunk_first - full * TILE).to(tl.int32)
    if (t_rows > 0) & (full > own):  # only a sequence's last tile
        t = chunk_first + full * TILE
        dk = add_keys_of_tile(dk, dproducts_ptr, q_ptr, t, full, j_tile, t_rows, column_k, G, K, TILE, LONG, PRECISION)
    inside = (tl.arange(0, TILE) < rows)[:, None] & (column_k < K)[None, :]
    at = tl.arange(0, TILE)[:, None] * (G * K) + column_k[None, :]
    tl.store(dk_ptr + (first * G + g) * K + at, dk.to(dk_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_keys_of_tile(
    dk, dproducts_ptr, q_ptr, t, p, j_tile, t_rows, column_k,
    G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk plus what is added by the first `t_rows` tokens (None: all) of the chunk's tile p, which begins at token t."""
    q = load_tile(q_ptr, t, t_rows, column_k, G * K, K, TILE)
    at = dproducts_ptr + p * (TILE * G * LONG) + stored_tile(0, j_tile * TILE, G, LONG, TILE, True)
    if t_rows is None:
        dproducts = tl.load(at)
    else:
        dproducts = tl.load(at, mask=(tl.arange(0, TILE) < t_rows)[None, :], other=0.0)
    return dk + tl.dot(dproducts, q, input_precision=PRECISION)  # [TILE, TILE] @ [TILE, BK] -> [TILE, BK]
