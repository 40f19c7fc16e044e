# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Gradient of the values.

    dv_j = sum over the slot a that j ends its chunk in of U_j dS_a(next) + sum_t Mx[t, j] L[t, age(t, j)] do_t

With `L[age + 1] - L[age]` in place of L, and without t = j, `v_j . dv_j` is what the boundary gradient calls the column sums.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles, exact_products
from dla_kernels.reader.fused.pieces import Pieces, locate, locate_tile
from dla_kernels.reader.fused.states_layout import end_row, slot_offset
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed, tile_products
from dla_kernels.reader.fused.weights import Weights, own_weights, pair_weights_transposed, tile_weights, token_starts
from dla_kernels.reader.fused.within import causal, decays_since, decays_until, own_decays, stored_tile


def values_backward(
    q: Tensor, k: Tensor, u: Tensor, do: Tensor, within: Tensor | None, weights: Weights, total: Tensor,
    adjoint: Tensor, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_dfinal: bool,
) -> Tensor:  # fmt: skip
    """dv `[tokens, H, V]` like do. q, k make Mx where `within` is None; u makes the writes (k, or U of the delta rule)."""
    dv = torch.empty_like(do)
    arguments, sizes = _launch(q, k, u, do, within, weights, total, adjoint, scale, tables, pieces, tiles)
    grid = (pieces.tiles, do.shape[1], triton.cdiv(do.shape[2], tiles.block_v))
    values_backward_kernel[grid](*arguments, dv, HAS_DFINAL=has_dfinal, num_warps=tiles.warps, num_stages=1, **sizes)
    return dv


def columns_backward(
    q: Tensor, k: Tensor, u: Tensor, v: Tensor, do: Tensor, within: Tensor | None, changes: Weights, total: Tensor,
    adjoint: Tensor, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_dfinal: bool,
) -> Tensor:  # fmt: skip
    """`v_j . dv_j` `[tokens, H]` float32 for weights that are changes of weights, of what other tokens read of j; dv is rounded
    nowhere on the way."""
    tokens, heads, value_dim = do.shape
    blocks_v = triton.cdiv(value_dim, tiles.block_v)
    columns = torch.empty(blocks_v, tokens, heads, dtype=torch.float32, device=do.device)
    arguments, sizes = _launch(q, k, u, do, within, changes, total, adjoint, scale, tables, pieces, tiles)
    columns_backward_kernel[(pieces.tiles, heads, blocks_v)](
        *arguments, v, columns, HAS_DFINAL=has_dfinal, num_warps=tiles.warps, num_stages=1, **sizes
    )
    return columns.sum(0)


def _launch(
    q: Tensor, k: Tensor, u: Tensor, do: Tensor, within: Tensor | None, weights: Weights, total: Tensor,
    adjoint: Tensor, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """What both kernels are called with."""
    (tokens, groups, key_dim), (_, heads, value_dim) = u.shape, do.shape
    slots = weights.slots
    arguments = (
        q, k, u, do, do if within is None else within, weights.own, weights.at_tile, total, adjoint,
        tables.token_age, tables.final_token,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, tokens, scale,
    )  # fmt: skip
    sizes = {
        "H": heads, "G": groups, "K": key_dim, "V": value_dim, "M": slots, "MP": padded_slots(slots), "TILE": pieces.tile,
        "LONG": pieces.long, "BK": tiles.block_k, "BV": tiles.block_v, "STORED": within is not None, "PRECISION": "ieee",
        "EXACT": exact_products(do.dtype),
    }  # fmt: skip
    return arguments, sizes


@triton.jit
def dvalues(
    q_ptr, k_ptr, u_ptr, do_ptr, within_ptr, own_ptr, start_weight_ptr, total_ptr, dhigh_ptr,
    token_age_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_DFINAL: tl.constexpr,
    STORED: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """dv of a tile's tokens and a block of V, float32 (OTHERS: without what j itself reads of j); where it belongs in
    `[tokens, H, V]`, and the mask."""
    h = tl.program_id(1).to(tl.int64)
    n, chunk, _, j_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    TILES: tl.constexpr = LONG // TILE
    dtype = do_ptr.dtype.element_ty
    g = h // (H // G)
    j = first + tl.arange(0, TILE)
    there = j < last
    stop = tl.load(cu_ptr + n + 1)
    chunk_last = tl.minimum(chunk_first + LONG, stop)
    row_v = tl.program_id(2) * BV + tl.arange(0, BV)
    in_v = row_v < V
    dv = tl.zeros((TILE, BV), tl.float32)

    if HAS_DFINAL or chunk_last < stop:
        total_end = tl.load(total_ptr + h * tokens + chunk_last - 1)
        factor = tl.exp(total_end - tl.load(total_ptr + h * tokens + j, mask=there, other=float("inf")))
        to = tl.load(final_token_ptr + h * tokens + j, mask=there, other=0).to(tl.int32)
        for a in range(tl.min(tl.where(there, to, 255)), tl.max(tl.where(there, to, 0)) + 1):
            member = there & (to == a)
            at = slot_offset(end_row(chunk, n, HAS_DFINAL), h, a, H, M, K, V)
            for start in range(0, K, BK):
                row_k = start + tl.arange(0, BK)
                in_k = row_k < K
                u = tl.load(
                    u_ptr + (j * G + g)[:, None] * K + row_k[None, :], mask=member[:, None] & in_k[None, :], other=0.0
                )
                key = (u.to(tl.float32) * factor[:, None]).to(dtype)
                dstate = tl.load(
                    dhigh_ptr + at + row_k[:, None] * V + row_v[None, :], mask=in_k[:, None] & in_v[None, :], other=0.0
                )
                dv += tl.dot(key, dstate, input_precision=EXACT)  # [TILE, BK] @ [BK, BV] -> [TILE, BV]

    rows = (last - first).to(tl.int32)
    column_k = tl.arange(0, BK)
    total_ptr += h * tokens
    q_ptr += g * K
    k_ptr += g * K
    do_ptr += h * V
    within_ptr += (chunk_first * H + h) * LONG

    # tokens of this tile
    do = load_tile(do_ptr, first, rows, row_v, H * V, V, TILE)
    if STORED:
        at = stored_tile(j_tile * TILE, j_tile * TILE, H, LONG, TILE, True)
        within = tl.load(within_ptr + at, mask=causal(rows, TILE, True), other=0.0).to(tl.float32)
    else:
        k = load_tile(k_ptr, first, rows, column_k, G * K, K, TILE)
        q = load_tile_transposed(q_ptr, first, rows, column_k, G * K, K, TILE)
        within = tile_products(
            k, k_ptr, first, rows, q, q_ptr, first, rows, G * K, G * K, K, TILE, BK, PRECISION
        )  # fmt: skip
        within *= own_decays(total_ptr, first, rows, TILE, True) * scale
    within *= own_weights(own_ptr, h, first, rows, tokens, TILE, True)
    if OTHERS:
        row = tl.arange(0, TILE)
        within = tl.where(row[:, None] == row[None, :], 0.0, within)
    dv += tl.dot(within.to(dtype), do, input_precision=PRECISION)  # [TILE, TILE] @ [TILE, BV] -> [TILE, BV]

    # tokens of later tiles of the chunk: this one is full
    if last < chunk_last:
        reference = tl.load(total_ptr + last - 1)
        until = decays_until(total_ptr, first, reference, TILE) * scale
        for p in range(j_tile + 1, ((chunk_last - chunk_first + TILE - 1) // TILE).to(tl.int32)):
            t = chunk_first + p * TILE
            t_rows = tl.minimum(chunk_last - t, TILE).to(tl.int32)
            starts = token_starts(token_age_ptr, h, p, first, tokens, TILES, TILE)
            weights = tile_weights(start_weight_ptr + h * tokens * MP, t, t_rows, MP, TILE, True)
            do = load_tile(do_ptr, t, t_rows, row_v, H * V, V, TILE)
            if STORED:
                at = stored_tile(p * TILE, j_tile * TILE, H, LONG, TILE, True)
                there_t = (tl.arange(0, TILE) < t_rows)[None, :]
                within = tl.load(within_ptr + at, mask=there_t, other=0.0).to(tl.float32)
            else:
                q = load_tile_transposed(q_ptr, t, t_rows, column_k, G * K, K, TILE)
                since = decays_since(total_ptr, t, t_rows, reference, TILE)
                within = tile_products(
                    k, k_ptr, first, None, q, q_ptr, t, t_rows, G * K, G * K, K, TILE, BK, PRECISION
                )  # fmt: skip
                within *= until[:, None] * since[None, :]
            within *= pair_weights_transposed(weights, starts, MP, PRECISION)
            dv += tl.dot(within.to(dtype), do, input_precision=PRECISION)
    return dv, (j * H + h)[:, None] * V + row_v[None, :], there[:, None] & in_v[None, :]


@triton.jit
def values_backward_kernel(
    q_ptr, k_ptr, u_ptr, do_ptr, within_ptr, own_ptr, start_weight_ptr, total_ptr, dhigh_ptr,
    token_age_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale, dv_ptr,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_DFINAL: tl.constexpr,
    STORED: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dv_j = U_j dS_{final_token[j]} + sum_t Mx[t, j] L[t, age(t, j)] do_t"""
    dv, at, inside = dvalues(
        q_ptr, k_ptr, u_ptr, do_ptr, within_ptr, own_ptr, start_weight_ptr, total_ptr, dhigh_ptr,
        token_age_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
        H, G, K, V, M, MP, TILE, LONG, BK, BV, HAS_DFINAL, STORED, PRECISION, EXACT, False,
    )  # fmt: skip
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def columns_backward_kernel(
    q_ptr, k_ptr, u_ptr, do_ptr, within_ptr, own_ptr, start_weight_ptr, total_ptr, dhigh_ptr,
    token_age_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
    v_ptr, columns_ptr,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_DFINAL: tl.constexpr,
    STORED: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """v_j . dv_j over a block of V"""
    dv, at, inside = dvalues(
        q_ptr, k_ptr, u_ptr, do_ptr, within_ptr, own_ptr, start_weight_ptr, total_ptr, dhigh_ptr,
        token_age_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
        H, G, K, V, M, MP, TILE, LONG, BK, BV, HAS_DFINAL, STORED, PRECISION, EXACT, True,
    )  # fmt: skip
    v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
    h = tl.program_id(1).to(tl.int64)
    _, _, first, last = locate(tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, TILE)
    j = first + tl.arange(0, TILE)
    part = tl.program_id(2).to(tl.int64) * tokens
    tl.store(columns_ptr + (part + j) * H + h, tl.sum(v * dv, 1), mask=j < last)
