# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Gradient of the values.

    dv_j = U_j dS_a(next) + sum_t Mx[t, j] L[t, age(t, j)] do_t,      a the slot that j is in at the end of its chunk

A factor of the key has the same effect as one of the value, so k_j . dk_j, which the gradient of the decay needs, is
v_j . dv_j.
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
from dla_kernels.reader.fused.within import Within, own_stored, stored_tile, until_end


def values_backward(
    q: Tensor, k: Tensor, u: Tensor, v: Tensor, do: Tensor, within: Within, weights: Weights, total: Tensor,
    adjoint: Tensor, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_dfinal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dv `[tokens, H, V]` like do; with plain decay also k . dk `[V blocks, H, tokens]`, and the part of it that comes from the
    states at the chunk's end, summed over a tile, `[V blocks, tiles, H]`, both float32, whose blocks are to be added up.

    q, k make Mx where it is not stored; u makes the writes (k, or U of the delta rule)."""
    (_, groups, key_dim), (_, heads, value_dim) = u.shape, do.shape
    slots = weights.slots
    dv = torch.empty_like(do)
    blocks_v = triton.cdiv(value_dim, tiles.block_v)
    parts = 0 if within.decayed else blocks_v
    kdk = torch.empty(parts, heads, pieces.tokens, dtype=torch.float32, device=do.device)
    ends = torch.empty(parts, pieces.tiles, heads, dtype=torch.float32, device=do.device)
    values_backward_kernel[(pieces.tiles, heads, blocks_v)](
        q, k, u, v, do, do if within.stored is None else within.stored, weights.own, weights.at_tile, total, adjoint,
        tables.token_age, tables.final_token, pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk,
        pieces.tokens, pieces.tiles,
        scale if within.stored is None else 1.0, dv, kdk, ends,
        H=heads, G=groups, K=key_dim, V=value_dim, M=slots, MP=padded_slots(slots), TILE=pieces.tile, LONG=pieces.long,
        BK=inner_block(key_dim, tiles), BV=tiles.block_v, HAS_DFINAL=has_dfinal, PRECISION="ieee",
        EXACT=exact_products(do.dtype), num_warps=tiles.warps, num_stages=1, **within.sizes(), **tiles.limits(),
    )  # fmt: skip
    return dv, kdk, ends


@triton.jit
def values_of_states(
    u_ptr, total_ptr, dhigh_ptr, final_token_ptr, tokens, h, g, row, first, last, chunk_last, end, row_v,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr,
    BK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """`U_j dS_a(next)` `[TILE, BV]` float32, with a the slot that j is in at the end of its chunk, and without the
    decay from j to its tile's end, where G is `end`; `row`: of the adjoint at the chunk's end."""
    j = first + tl.arange(0, TILE)
    there = j < last
    in_v = row_v < V
    dv = tl.zeros((TILE, row_v.shape[0]), tl.float32)
    to = tl.load(final_token_ptr + h * tokens + j, mask=there, other=0).to(tl.int32)
    for a in range(tl.min(tl.where(there, to, 255)), tl.max(tl.where(there, to, 0)) + 1):
        member = there & (to == a)
        at = slot_offset(row, h, a, H, M, K, V)
        for start in range(0, K, BK):
            row_k = start + tl.arange(0, BK)
            in_k = row_k < K
            u = tl.load(
                u_ptr + (j * G + g)[:, None] * K + row_k[None, :], mask=member[:, None] & in_k[None, :], other=0.0
            )
            dstate = tl.load(
                dhigh_ptr + at + row_k[:, None] * V + row_v[None, :], mask=in_k[:, None] & in_v[None, :], other=0.0
            )
            dv += tl.dot(u, dstate, input_precision=EXACT)  # [TILE, BK] @ [BK, BV] -> [TILE, BV]
    return dv * tl.exp(tl.load(total_ptr + h * tokens + chunk_last - 1) - end)


@triton.jit
def values_backward_kernel(
    q_ptr, k_ptr, u_ptr, v_ptr, do_ptr, within_ptr, own_ptr, start_weight_ptr, total_ptr, dhigh_ptr,
    token_age_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, all_tiles, scale,
    dv_ptr, kdk_ptr, ends_ptr,
    H: tl.constexpr, G: tl.constexpr, W: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr,
    MP: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    HAS_DFINAL: tl.constexpr, STORED: tl.constexpr, DECAYED: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """dv_j = U_j dS_{final_token[j]} + sum_t Mx[t, j] L[t, age(t, j)] do_t, and v_j . dv_j"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    n, chunk, _, j_tile, chunk_first, first, last = locate_tile(
        tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    dtype = do_ptr.dtype.element_ty
    g = h // (H // G)
    stop = tl.load(cu_ptr + n + 1)
    chunk_last = tl.minimum(chunk_first + LONG, stop)
    row_v = part * BV + tl.arange(0, BV)
    rows = (last - first).to(tl.int32)
    # contributions of later tiles and chunks share the decay from j to the end of this tile, which is applied last
    end = tl.load(total_ptr + h * tokens + last - 1)
    dv = tl.zeros((TILE, BV), tl.float32)

    if HAS_DFINAL or chunk_last < stop:
        dv += values_of_states(
            u_ptr, total_ptr, dhigh_ptr, final_token_ptr, tokens, h, g, end_row(chunk, n, HAS_DFINAL), first, last,
            chunk_last, end, row_v, H, G, K, V, M, TILE, BK, EXACT,
        )  # fmt: skip

    if not DECAYED:
        value = load_tile(v_ptr + h * V, first, rows, row_v, H * V, V, TILE).to(tl.float32)
        of_states = tl.sum(value * dv, 1) * until_end(total_ptr + h * tokens, first, rows, end, TILE)
        tl.store(ends_ptr + (part * all_tiles + tile) * H + h, tl.sum(of_states))

    column_k = tl.arange(0, BK)
    total_ptr += h * tokens
    q_ptr += g * K
    k_ptr += g * K
    do_ptr += h * V
    within_ptr += (chunk_first * W + h // (H // W)) * LONG
    k = dv  # anything, where products are stored
    if not STORED:
        k = load_tile(k_ptr, first, rows, column_k, G * K, K, TILE)

    # tokens of later tiles of the chunk: this one is full
    if last < chunk_last:
        full = (chunk_last - chunk_first) // TILE
        for p in range((j_tile + 1).to(tl.int64), full):  # 64 bits: then one pointer counts for all rows of a tile
            dv = values_of_pair(
                dv, k, q_ptr, k_ptr, do_ptr, within_ptr, start_weight_ptr, total_ptr, token_age_ptr, tokens, h, p, j_tile,
                None, first, end, row_v, scale, H, G, W, K, V, MP, TILE, LONG, BK, STORED, DECAYED, PRECISION,
            )  # fmt: skip
        t_rows = (chunk_last - chunk_first - full * TILE).to(tl.int32)
        if t_rows > 0:  # only a sequence's last tile: a loop with masks takes a third more instructions
            dv = values_of_pair(
                dv, k, q_ptr, k_ptr, do_ptr, within_ptr, start_weight_ptr, total_ptr, token_age_ptr, tokens, h, full,
                j_tile, t_rows, first, end, row_v, scale, H, G, W, K, V, MP, TILE, LONG, BK, STORED, DECAYED, PRECISION,
            )  # fmt: skip
    if not DECAYED:
        dv *= until_end(total_ptr, first, rows, end, TILE)[:, None]

    # tokens of this tile
    do = load_tile(do_ptr, first, rows, row_v, H * V, V, TILE)
    if STORED:
        within = own_stored(within_ptr, j_tile, rows, W, LONG, TILE, True)
    else:
        q = load_tile_transposed(q_ptr, first, rows, column_k, G * K, K, TILE)
        within = tile_products(
            k, k_ptr, first, rows, q, q_ptr, first, rows, G * K, G * K, K, TILE, BK, PRECISION
        )  # fmt: skip
    within *= own_weights(own_ptr, h, first, rows, tokens, TILE, True) * scale
    dv += tl.dot(within.to(dtype), do, input_precision=PRECISION)

    inside = (tl.arange(0, TILE) < rows)[:, None] & (row_v < V)[None, :]
    at = tl.arange(0, TILE)[:, None] * (H * V) + row_v[None, :]
    tl.store(dv_ptr + first * (H * V) + h * V + at, dv.to(dtype), mask=inside)
    if not DECAYED:  # v is loaded again: meanwhile it would take registers
        value = load_tile(v_ptr + h * V, first, rows, row_v, H * V, V, TILE).to(tl.float32)
        row = tl.arange(0, TILE)
        tl.store(kdk_ptr + (part * H + h) * tokens + first + row, tl.sum(value * dv, 1), mask=row < rows)


@triton.jit
def values_of_pair(
    dv, k, q_ptr, k_ptr, do_ptr, within_ptr, start_weight_ptr, total_ptr, token_age_ptr, tokens, h, p, j_tile, t_rows,
    first, end, row_v, scale,
    H: tl.constexpr, G: tl.constexpr, W: tl.constexpr, K: tl.constexpr, V: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, STORED: tl.constexpr, DECAYED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dv plus the contribution of the first `t_rows` tokens (None: all) of a later tile p of the chunk."""
    column_k = tl.arange(0, BK)
    t = first + (p - j_tile) * TILE
    starts = token_starts(token_age_ptr, h, p, first, tokens, LONG // TILE, TILE)
    weights = tile_weights(start_weight_ptr + h * tokens * MP, t, t_rows, MP, TILE, True)
    do = load_tile(do_ptr, t, t_rows, row_v, H * V, V, TILE)
    if STORED:
        at = within_ptr + p * (TILE * W * LONG) + stored_tile(0, j_tile * TILE, W, LONG, TILE, True)
        if t_rows is None:
            within = tl.load(at)
        else:
            within = tl.load(at, mask=(tl.arange(0, TILE) < t_rows)[None, :], other=0.0)
    else:
        q = load_tile_transposed(q_ptr, t, t_rows, column_k, G * K, K, TILE)
    if not DECAYED:
        between = tl.exp(tl.load(total_ptr + t - 1) - end) * scale
    if STORED:
        within = within.to(tl.float32)
    else:
        within = tile_products(k, k_ptr, first, None, q, q_ptr, t, t_rows, G * K, G * K, K, TILE, BK, PRECISION)
    if not DECAYED:
        within *= between
    within *= pair_weights_transposed(weights, starts, MP, PRECISION)
    return dv + tl.dot(within.to(do.dtype), do, input_precision=PRECISION)  # [TILE, TILE] @ [TILE, BV] -> [TILE, BV]
