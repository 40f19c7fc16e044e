# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Gradient of the queries and, on the way, of the weights of slots.

dQe_t = sum_i w[i, t] (do_t S_i^T),   dw[i, t] = Qe_t . (do_t S_i^T),   dq_t = scale exp(G_t) dQe_t
dq_t += scale sum_j L[t, age(t, j)] exp(G_t - G_j) (do_t . v_j) k_j                              (plain decay only)

The first line is a kernel over the slots of a chunk, the second one over pairs of tokens, which adds to it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles, inner_block
from dla_kernels.reader.fused.pieces import Pieces, locate_rows, locate_tile
from dla_kernels.reader.fused.states_layout import slot_offset, start_row
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed, tile_products
from dla_kernels.reader.fused.weights import Weights, own_weights, pair_weights, tile_weights, token_starts


def queries_backward(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, weights: Weights, total: Tensor, until: Tensor,
    kept: Tensor, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_state: bool, pairs: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq per head `[tokens, H, K]`; q . dq `[parts, H, tokens]`; `dw exp(-G_t)` `[parts, H, M, tokens]`, the last two float32 and
    in parts to be added; dw is meaningless for slots that are not in use, q . dq without pairs."""
    (tokens, groups, key_dim), (_, heads, value_dim) = q.shape, v.shape
    slots = weights.slots
    blocks_k = triton.cdiv(key_dim, tiles.block_k)
    block_k = inner_block(key_dim, tiles)  # of pairs: what all blocks of K share is made once for each
    blocks_of_pairs = triton.cdiv(key_dim, block_k)
    dq = torch.empty(tokens, heads, key_dim, dtype=q.dtype, device=q.device)
    qdq = torch.empty(blocks_of_pairs, heads, tokens, dtype=torch.float32, device=q.device)
    dweight = torch.empty(blocks_k, heads, slots, tokens, dtype=torch.float32, device=q.device)
    sizes = {
        "H": heads, "G": groups, "K": key_dim, "V": value_dim, "LONG": pieces.long, "BV": tiles.block_v,
        "PRECISION": "ieee", "num_warps": tiles.warps,
    }  # fmt: skip
    queries_slots_kernel[(pieces.chunks * (pieces.long // tiles.rows), heads, blocks_k)](
        q, do, weights.at_chunk, kept, dq, dweight, tables.used, pieces.chunk_sequence, pieces.chunk_number,
        pieces.cu, tokens, scale, M=slots, ROWS=tiles.rows, BK=tiles.block_k, HAS_STATE=has_state,
        num_stages=tiles.stages, **sizes,
    )  # fmt: skip
    if pairs:
        queries_backward_kernel[(pieces.tiles, heads, blocks_of_pairs)](
            q, k, v, do, weights.own, weights.at_tile, total, until, dq, qdq, tables.token_age,
            pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, tokens, scale,
            BK=block_k, MP=padded_slots(slots), TILE=pieces.tile, num_stages=1, **tiles.limits(summed=triton.cdiv(value_dim, tiles.block_v)), **sizes,
        )  # fmt: skip
    return dq, qdq, dweight


@triton.jit
def queries_slots_kernel(
    q_ptr, do_ptr, weight_ptr, high_ptr, dq_ptr, dweight_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr,
    tokens, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, LONG: tl.constexpr,
    ROWS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq_t = scale sum_i exp(G_t) w[i, t] (do_t S_i^T),   exp(-G_t) dw[i, t] = scale q_t . (do_t S_i^T)"""
    h = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    n, chunk, first, last = locate_rows(tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, LONG, ROWS)
    if first < last:
        BLOCKS: tl.constexpr = (V + BV - 1) // BV
        t = first + tl.arange(0, ROWS)
        there = t < last
        row_k = part * BK + tl.arange(0, BK)
        in_k = row_k < K
        inside = there[:, None] & in_k[None, :]
        q = tl.load(q_ptr + (t * G + h // (H // G))[:, None] * K + row_k[None, :], mask=inside, other=0.0)
        dq = tl.zeros((ROWS, BK), tl.float32)
        dweight = tl.zeros((ROWS,), tl.float32)
        row_v = tl.arange(0, BV)
        in_v = row_v < V
        row_do = do_ptr + (t * H + h)[:, None] * V
        do = tl.load(row_do + row_v[None, :], mask=there[:, None] & in_v[None, :], other=0.0)
        used = tl.load(used_ptr + chunk * H + h)
        weight = tl.load(weight_ptr + h * M * tokens + t, mask=there, other=0.0)
        # slots and blocks of V in one loop, whose loads run ahead; weights, which are no factors, by hand
        for step in range(0, used * BLOCKS):
            i = step // BLOCKS
            following = tl.minimum((step + 1) // BLOCKS, used - 1)
            weight_after = tl.load(weight_ptr + (h * M + following) * tokens + t, mask=there, other=0.0)
            if BLOCKS > 1:
                row_v = (step % BLOCKS) * BV + tl.arange(0, BV)
                in_v = row_v < V
                do = tl.load(row_do + row_v[None, :], mask=there[:, None] & in_v[None, :], other=0.0)
            at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + row_k[None, :] * V + row_v[:, None]
            state = tl.load(high_ptr + at, mask=in_k[None, :] & in_v[:, None], other=0.0)
            seen = tl.dot(do, state, input_precision=PRECISION)  # [ROWS, BV] @ [BV, BK] -> [ROWS, BK]
            dq += weight[:, None] * seen
            dweight = tl.where(step % BLOCKS == 0, 0.0, dweight) + tl.sum(q.to(tl.float32) * seen, 1)
            at = ((part * H + h) * M + i) * tokens + t
            tl.store(dweight_ptr + at, dweight * scale, mask=there & (step % BLOCKS == BLOCKS - 1))
            weight = weight_after
        tl.store(dq_ptr + (t * H + h)[:, None] * K + row_k[None, :], (dq * scale).to(q.dtype), mask=inside)


@triton.jit
def queries_backward_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, own_ptr, start_weight_ptr, total_ptr, until_ptr, dq_ptr, qdq_ptr, token_age_ptr,
    sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq_t += sum_j (dMx[t, j] exp(G_t - G_j) scale) k_j, and q_t . dq_t"""
    h = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    _, _, _, q_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    TILES: tl.constexpr = LONG // TILE
    dtype = v_ptr.dtype.element_ty
    rows = (last - first).to(tl.int32)
    row = tl.arange(0, TILE)
    column_k = part * BK + tl.arange(0, BK)
    total_ptr += h * tokens
    until_ptr += h * tokens
    q_ptr += h // (H // G) * K
    k_ptr += h // (H // G) * K
    v_ptr += h * V
    do_ptr += h * V
    dq_ptr += h * K

    # tokens of this tile
    column_v = tl.arange(0, BV)
    do = load_tile(do_ptr, first, rows, column_v, H * V, V, TILE)
    v = load_tile_transposed(v_ptr, first, rows, column_v, H * V, V, TILE)
    k = load_tile(k_ptr, first, rows, column_k, G * K, K, TILE)
    dwithin = tile_products(
        do, do_ptr, first, rows, v, v_ptr, first, rows, H * V, H * V, V, TILE, BV, PRECISION
    )  # fmt: skip
    dwithin *= own_weights(own_ptr, h, first, rows, tokens, TILE, False) * scale
    dq = load_tile(dq_ptr, first, rows, column_k, H * K, K, TILE).to(tl.float32)
    dq += tl.dot(dwithin.to(dtype), k, input_precision=PRECISION)  # [TILE, TILE] @ [TILE, BK] -> [TILE, BK]

    # tokens of earlier tiles of the chunk, which are full
    if q_tile > 0:
        weights = tile_weights(start_weight_ptr + h * tokens * MP, first, rows, MP, TILE, False)
        total_before = tl.load(total_ptr + first - 1)
        starts = token_starts(token_age_ptr, h, q_tile, chunk_first, tokens, TILES, TILE)
        for p in range(0, q_tile):
            j = chunk_first + p * TILE
            following = chunk_first + tl.minimum(p + 1, q_tile - 1) * TILE
            starts_after = token_starts(token_age_ptr, h, q_tile, following, tokens, TILES, TILE)
            v = load_tile_transposed(v_ptr, j, None, column_v, H * V, V, TILE)
            k = load_tile(k_ptr, j, None, column_k, G * K, K, TILE)
            between = tl.exp(total_before - tl.load(total_ptr + j + TILE - 1)) * scale
            until = tl.load(until_ptr + j + row) * between
            dwithin = tile_products(
                do, do_ptr, first, rows, v, v_ptr, j, None, H * V, H * V, V, TILE, BV, PRECISION
            )  # fmt: skip
            dwithin *= until[None, :]
            dwithin *= pair_weights(weights, starts, MP, PRECISION)
            dq += tl.dot(dwithin.to(dtype), k, input_precision=PRECISION)
            starts = starts_after

    inside = (row < rows)[:, None] & (column_k < K)[None, :]
    tl.store(dq_ptr + first * (H * K) + row[:, None] * (H * K) + column_k[None, :], dq.to(dtype), mask=inside)
    query = load_tile(q_ptr, first, rows, column_k, G * K, K, TILE).to(tl.float32)
    tl.store(qdq_ptr + (part * H + h) * tokens + first + row, tl.sum(query * dq, 1), mask=row < rows)
