# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Gradient of the keys.

    dU_j = sum over the slot a that j ends its chunk in of dS_a(next) v_j,   dk_j = exp(G_end - G_j) dU_j
    dk_j += scale sum_t L[t, age(t, j)] exp(G_t - G_j) (do_t . v_j) q_t                              (plain decay only)

For the delta rule k is U itself, G zero. Products are made with j as rows from the start, never by transposing a result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles, exact_products, inner_block
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.states_layout import end_row, slot_offset
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed, tile_products
from dla_kernels.reader.fused.weights import Weights, own_weights, pair_weights_transposed, tile_weights, token_starts
from dla_kernels.reader.fused.within import until_end


def keys_backward(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, weights: Weights, total: Tensor, adjoint: Tensor,
    scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_dfinal: bool, pairs: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dk per head `[tokens, H, K]`; k . dk `[K blocks, H, tokens]`; the part of it that comes from the states at the chunk's
    end, summed over a tile, `[K blocks, tiles, H]`; the last two float32."""
    (tokens, groups, key_dim), (_, heads, value_dim) = k.shape, v.shape
    slots = weights.slots
    block_k = inner_block(key_dim, tiles)  # what all blocks of K share is made once for each
    blocks_k = triton.cdiv(key_dim, block_k)
    dk = torch.empty(tokens, heads, key_dim, dtype=k.dtype, device=k.device)
    kdk = torch.empty(blocks_k, heads, tokens, dtype=torch.float32, device=k.device)
    ends = torch.empty(blocks_k, pieces.tiles, heads, dtype=torch.float32, device=k.device)
    keys_backward_kernel[(pieces.tiles, heads, blocks_k)](
        q, k, v, do, weights.own, weights.at_tile, total, adjoint, dk, kdk, ends,
        tables.token_age, tables.final_token,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, tokens, pieces.tiles, scale,
        H=heads, G=groups, K=key_dim, V=value_dim, M=slots, MP=padded_slots(slots), TILE=pieces.tile, LONG=pieces.long,
        BK=block_k, BV=tiles.block_v, HAS_DFINAL=has_dfinal, PAIRS=pairs, PRECISION="ieee",
        EXACT=exact_products(v.dtype), num_warps=tiles.warps, num_stages=1,
    )  # fmt: skip
    return dk, kdk, ends


@triton.jit
def keys_backward_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, own_ptr, start_weight_ptr, total_ptr, dhigh_ptr, dk_ptr, kdk_ptr, ends_ptr,
    token_age_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr,
    tokens, all_tiles, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_DFINAL: tl.constexpr,
    PAIRS: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dk_j = exp(G_end - G_j) dS_{final_token[j]} v_j + sum_t (dMx[t, j] exp(G_t - G_j) scale) q_t"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    n, chunk, _, j_tile, chunk_first, first, last = locate_tile(
        tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    TILES: tl.constexpr = LONG // TILE
    dtype = v_ptr.dtype.element_ty
    g = h // (H // G)
    j = first + tl.arange(0, TILE)
    there = j < last
    stop = tl.load(cu_ptr + n + 1)
    chunk_last = tl.minimum(chunk_first + LONG, stop)
    row_k = part * BK + tl.arange(0, BK)
    in_k = row_k < K
    inside = there[:, None] & in_k[None, :]
    rows = (last - first).to(tl.int32)
    # what later tiles and chunks give has in common the decay from the end of this tile to j, which comes last
    end = tl.load(total_ptr + h * tokens + last - 1)
    until = until_end(total_ptr + h * tokens, first, rows, end, TILE)
    dk = tl.zeros((TILE, BK), tl.float32)

    if HAS_DFINAL or chunk_last < stop:
        to = tl.load(final_token_ptr + h * tokens + j, mask=there, other=0).to(tl.int32)
        for a in range(tl.min(tl.where(there, to, 255)), tl.max(tl.where(there, to, 0)) + 1):
            member = there & (to == a)
            at = slot_offset(end_row(chunk, n, HAS_DFINAL), h, a, H, M, K, V)
            for start in range(0, V, BV):
                row_v = start + tl.arange(0, BV)
                in_v = row_v < V
                v = tl.load(
                    v_ptr + (j * H + h)[:, None] * V + row_v[None, :], mask=member[:, None] & in_v[None, :], other=0.0
                )
                dstate = tl.load(
                    dhigh_ptr + at + row_k[None, :] * V + row_v[:, None], mask=in_k[None, :] & in_v[:, None], other=0.0
                )
                dk += tl.dot(v, dstate, input_precision=EXACT)  # [TILE, BV] @ [BV, BK] -> [TILE, BK]
        dk *= tl.exp(tl.load(total_ptr + h * tokens + chunk_last - 1) - end)
    key = tl.load(k_ptr + (j * G + g)[:, None] * K + row_k[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(ends_ptr + (part * all_tiles + tile) * H + h, tl.sum(tl.sum(key * dk, 1) * until))

    if PAIRS:
        total_ptr += h * tokens
        q_ptr += g * K
        v_ptr += h * V
        do_ptr += h * V
        column_v = tl.arange(0, BV)
        v = load_tile(v_ptr, first, rows, column_v, H * V, V, TILE)
        # tokens of later tiles of the chunk: this one is full
        if last < chunk_last:
            full = (chunk_last - chunk_first) // TILE
            for p in range((j_tile + 1).to(tl.int64), full):  # 64 bits: then one pointer counts for all rows of a tile
                dk = keys_of_pair(
                    dk, v, q_ptr, v_ptr, do_ptr, start_weight_ptr, total_ptr, token_age_ptr, tokens, h, p, j_tile, None,
                    first, end, row_k, scale, H, G, K, V, MP, TILE, TILES, BV, PRECISION,
                )  # fmt: skip
            t_rows = (chunk_last - chunk_first - full * TILE).to(tl.int32)
            if t_rows > 0:  # only a sequence's last tile: a loop with masks takes a third more instructions
                dk = keys_of_pair(
                    dk, v, q_ptr, v_ptr, do_ptr, start_weight_ptr, total_ptr, token_age_ptr, tokens, h, full, j_tile,
                    t_rows, first, end, row_k, scale, H, G, K, V, MP, TILE, TILES, BV, PRECISION,
                )  # fmt: skip
        dk *= until[:, None]
        # tokens of this tile
        do = load_tile_transposed(do_ptr, first, rows, column_v, H * V, V, TILE)
        dwithin = tile_products(
            v, v_ptr, first, rows, do, do_ptr, first, rows, H * V, H * V, V, TILE, BV, PRECISION
        )  # fmt: skip
        dwithin *= own_weights(own_ptr, h, first, rows, tokens, TILE, True) * scale
        q = load_tile(q_ptr, first, rows, row_k, G * K, K, TILE)
        dk += tl.dot(dwithin.to(dtype), q, input_precision=PRECISION)

    tl.store(dk_ptr + (j * H + h)[:, None] * K + row_k[None, :], dk.to(dtype), mask=inside)
    # loaded again: meanwhile it would take registers
    key = tl.load(k_ptr + (j * G + g)[:, None] * K + row_k[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(kdk_ptr + (part * H + h) * tokens + j, tl.sum(key * dk, 1), mask=there)


@triton.jit
def keys_of_pair(
    dk, v, q_ptr, v_ptr, do_ptr, start_weight_ptr, total_ptr, token_age_ptr, tokens, h, p, j_tile, t_rows, first,
    end, row_k, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, MP: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and what it is given by the first `t_rows` tokens (None: all) of a later tile p of the chunk."""
    column_v = tl.arange(0, BV)
    t = first + (p - j_tile) * TILE
    starts = token_starts(token_age_ptr, h, p, first, tokens, TILES, TILE)
    weights = tile_weights(start_weight_ptr + h * tokens * MP, t, t_rows, MP, TILE, True)
    do = load_tile_transposed(do_ptr, t, t_rows, column_v, H * V, V, TILE)
    q = load_tile(q_ptr, t, t_rows, row_k, G * K, K, TILE)
    between = tl.exp(tl.load(total_ptr + t - 1) - end) * scale
    dwithin = tile_products(v, v_ptr, first, None, do, do_ptr, t, t_rows, H * V, H * V, V, TILE, BV, PRECISION)
    dwithin *= pair_weights_transposed(weights, starts, MP, PRECISION) * between
    return dk + tl.dot(dwithin.to(q.dtype), q, input_precision=PRECISION)  # [TILE, TILE] @ [TILE, BK] -> [TILE, BK]
