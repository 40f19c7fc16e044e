# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Gradient of the products `scale q_t . k_j` of plain decay, which the heads of a group share.

    dP[t, j] = scale sum over the heads of a group of L[t, age(t, j)] exp(G_t - G_j) (do_t . v_j)

The heads of a group differ in everything but q and k. So they are summed here, before the products with q and k
(pair_gradients.py), which are then taken once per group instead of once per head. Gradients of single heads are not
needed: q . dq and k . dk, from which the decay's gradient is made, come from weights_backward.py and values.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed, tile_products
from dla_kernels.reader.fused.weights import Weights, own_weights, pair_weights, tile_weights, token_starts
from dla_kernels.reader.fused.within import stored_tile


def products_backward(
    v: Tensor, do: Tensor, weights: Weights, total: Tensor, until: Tensor, scale: float, tables: AgeTables,
    pieces: Pieces, tiles: Tiles, *, groups: int,
) -> Tensor:  # fmt: skip
    """dP `[tokens, G, LONG]` in the type of v and do `[tokens, H, V]`. The last index is j's place in the chunk of t;
    meaningless for tokens j of later tiles. total = G and until `[H, tokens]`."""
    tokens, heads, value_dim = v.shape
    dproducts = torch.empty(tokens, groups, pieces.long, dtype=v.dtype, device=v.device)
    products_backward_kernel[(pieces.tiles, groups, pieces.long // pieces.tile)](
        v, do, weights.own, weights.at_tile, total, until, dproducts, tables.token_age,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, tokens, scale,
        H=heads, G=groups, V=value_dim, MP=padded_slots(weights.slots), TILE=pieces.tile, LONG=pieces.long,
        BV=tiles.block_v, PRECISION="ieee", num_warps=tiles.warps, num_stages=1,
        **tiles.limits(summed=triton.cdiv(value_dim, tiles.block_v)),
    )  # fmt: skip
    return dproducts


@triton.jit
def products_backward_kernel(
    v_ptr, do_ptr, own_ptr, start_weight_ptr, total_ptr, until_ptr, dproducts_ptr, token_age_ptr,
    sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
    H: tl.constexpr, G: tl.constexpr, V: tl.constexpr, MP: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dP of the tokens t of one tile with the tokens j of the same or an earlier tile of their chunk"""
    g = tl.program_id(1).to(tl.int64)
    p = tl.program_id(2)
    _, _, _, q_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    if p <= q_tile:
        HEADS: tl.constexpr = H // G
        rows = (last - first).to(tl.int32)
        row = tl.arange(0, TILE)
        column_v = tl.arange(0, BV)
        j = chunk_first + p * TILE
        dproducts = tl.zeros((TILE, TILE), tl.float32)
        if p == q_tile:
            for h in range(g * HEADS, (g + 1) * HEADS):
                do = load_tile(do_ptr + h * V, first, rows, column_v, H * V, V, TILE)
                v = load_tile_transposed(v_ptr + h * V, first, rows, column_v, H * V, V, TILE)
                of_head = tile_products(
                    do, do_ptr + h * V, first, rows, v, v_ptr + h * V, first, rows, H * V, H * V, V, TILE, BV, PRECISION
                )  # fmt: skip
                dproducts += of_head * own_weights(own_ptr, h, first, rows, tokens, TILE, False)
        else:  # an earlier tile is full
            for h in range(g * HEADS, (g + 1) * HEADS):
                do = load_tile(do_ptr + h * V, first, rows, column_v, H * V, V, TILE)
                v = load_tile_transposed(v_ptr + h * V, j, None, column_v, H * V, V, TILE)
                weights = tile_weights(start_weight_ptr + h * tokens * MP, first, rows, MP, TILE, False)
                starts = token_starts(token_age_ptr, h, q_tile, j, tokens, LONG // TILE, TILE)
                end = tl.load(total_ptr + h * tokens + j + TILE - 1)
                between = tl.exp(tl.load(total_ptr + h * tokens + first - 1) - end)
                until = tl.load(until_ptr + h * tokens + j + row) * between
                of_head = tile_products(
                    do, do_ptr + h * V, first, rows, v, v_ptr + h * V, j, None, H * V, H * V, V, TILE, BV, PRECISION
                )  # fmt: skip
                of_head *= until[None, :]
                dproducts += of_head * pair_weights(weights, starts, MP, PRECISION)
        at = dproducts_ptr + (chunk_first * G + g) * LONG + stored_tile(q_tile * TILE, p * TILE, G, LONG, TILE, False)
        tl.store(at, (dproducts * scale).to(dproducts_ptr.dtype.element_ty), mask=(row < rows)[:, None])
