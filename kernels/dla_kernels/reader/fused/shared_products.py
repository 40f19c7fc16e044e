# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Products `scale q_t . k_j` of the tokens of a chunk, computed once for all heads of a group: with one group and 48
heads, the read and two kernels of the backward would each compute them 48 times."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.configs import Tiles, inner_block
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed, tile_products
from dla_kernels.reader.fused.within import stored_tile


def shared_products(q: Tensor, k: Tensor, scale: float, pieces: Pieces, tiles: Tiles) -> Tensor:
    """`[tokens, G, LONG]` in the type of q and k `[tokens, G, K]`. The last index is j's place in the chunk of t;
    meaningless for tokens j of later tiles."""
    tokens, groups, key_dim = q.shape
    products = torch.empty(tokens, groups, pieces.long, dtype=q.dtype, device=q.device)
    shared_products_kernel[(pieces.tiles, groups, pieces.long // pieces.tile)](
        q, k, products, pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, scale,
        G=groups, K=key_dim, TILE=pieces.tile, LONG=pieces.long, BK=inner_block(key_dim, tiles), PRECISION="ieee",
        num_warps=tiles.warps, num_stages=1,
    )  # fmt: skip
    return products


@triton.jit
def shared_products_kernel(
    q_ptr, k_ptr, products_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, scale,
    G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of the tokens t of one tile with the tokens j of the same or an earlier tile of their chunk"""
    g = tl.program_id(1).to(tl.int64)
    p = tl.program_id(2)
    _, _, _, q_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    if p <= q_tile:
        rows = (last - first).to(tl.int32)
        j = chunk_first + p * TILE
        j_rows = tl.where(p == q_tile, rows, TILE)
        column_k = tl.arange(0, BK)
        q_ptr += g * K
        k_ptr += g * K
        q = load_tile(q_ptr, first, rows, column_k, G * K, K, TILE)
        k = load_tile_transposed(k_ptr, j, j_rows, column_k, G * K, K, TILE)
        products = tile_products(
            q, q_ptr, first, rows, k, k_ptr, j, j_rows, G * K, G * K, K, TILE, BK, PRECISION
        )  # fmt: skip
        at = products_ptr + (chunk_first * G + g) * LONG + stored_tile(q_tile * TILE, p * TILE, G, LONG, TILE, False)
        there = (tl.arange(0, TILE) < rows)[:, None]
        tl.store(at, (products * scale).to(products_ptr.dtype.element_ty), mask=there)
