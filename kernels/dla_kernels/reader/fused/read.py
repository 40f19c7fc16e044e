# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The read: `o_t = sum_j Mx[t, j] L[t, age(t, j)] v_j + sum_i w[i, t] Qe_t S_i`.

The second sum, over the states stored at the chunk's start, comes first, in a kernel of its own: weight and decay,
`w[i, t] exp(G_t)`, are one number per row, so that `q_t S_i` is a product of unchanged inputs, weighted afterwards in
float32. The first sum is over the chunk's tokens, tile by tile. `Qe_t = scale exp(G_t) q_t`; for the delta rule, q is
Qe itself, G is zero and scale is one.
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
from dla_kernels.reader.fused.within import Within, own_stored, stored_tile


def read(
    q: Tensor, k: Tensor, v: Tensor, within: Within, weights: Weights, total: Tensor,
    until: Tensor, kept: Tensor, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_state: bool,
) -> Tensor:  # fmt: skip
    """o `[tokens, H, V]` from q, k `[tokens, G, K]`, v, what is stored of Mx, total = G and until `[H, tokens]`."""
    (_, groups, key_dim), (_, heads, value_dim) = q.shape, v.shape
    slots = weights.slots
    o = torch.empty_like(v)
    of_slots = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    blocks_v = triton.cdiv(value_dim, tiles.block_v)
    sizes = {
        "H": heads,
        "G": groups,
        "K": key_dim,
        "V": value_dim,
        "LONG": pieces.long,
        "PRECISION": "ieee",
    }
    sizes |= {"BV": tiles.block_v, "num_warps": tiles.warps}
    read_slots_kernel[(pieces.chunks * (pieces.long // tiles.rows), heads, blocks_v)](
        q, weights.at_chunk, kept, of_slots, tables.used, pieces.chunk_sequence, pieces.chunk_number, pieces.cu,
        pieces.tokens, scale, BK=inner_block(key_dim, tiles), M=slots, ROWS=tiles.rows, HAS_STATE=has_state,
        num_stages=tiles.stages, **sizes,
    )  # fmt: skip
    read_kernel[(pieces.tiles, heads, blocks_v)](
        q, k, v, v if within.stored is None else within.stored, weights.own, weights.at_tile, total, until, of_slots, o,
        tables.token_age, tables.used,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, pieces.tokens,
        scale if within.stored is None else 1.0, BK=inner_block(key_dim, tiles), MP=padded_slots(slots), TILE=pieces.tile,
        num_stages=1, **within.sizes(), **tiles.limits(), **sizes,
    )  # fmt: skip
    return o


@triton.jit
def read_slots_kernel(
    q_ptr, weight_ptr, high_ptr, of_slots_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr, tokens, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, LONG: tl.constexpr,
    ROWS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scale exp(G_t) sum_i w[i, t] (q_t S_i)"""
    h = tl.program_id(1).to(tl.int64)
    n, chunk, first, last = locate_rows(tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, LONG, ROWS)
    if first < last:
        t = first + tl.arange(0, ROWS)
        there = t < last
        row_v = tl.program_id(2) * BV + tl.arange(0, BV)
        in_v = row_v < V
        used = tl.load(used_ptr + chunk * H + h)
        acc = tl.zeros((ROWS, BV), tl.float32)
        for start in tl.static_range(0, K, BK):
            row_k = start + tl.arange(0, BK)
            in_k = row_k < K
            q = tl.load(
                q_ptr + (t * G + h // (H // G))[:, None] * K + row_k[None, :],
                mask=there[:, None] & in_k[None, :],
                other=0.0,
            )
            # weights are loaded one slot ahead here: they are no factors of products, so nothing else loads them early
            weight = tl.load(weight_ptr + h * M * tokens + t, mask=there, other=0.0)
            for i in range(0, used):
                following = tl.minimum(i + 1, used - 1)
                weight_after = tl.load(weight_ptr + (h * M + following) * tokens + t, mask=there, other=0.0)
                at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + row_k[:, None] * V + row_v[None, :]
                state = tl.load(high_ptr + at, mask=in_k[:, None] & in_v[None, :], other=0.0)
                seen = tl.dot(q, state, input_precision=PRECISION)  # [ROWS, BK] @ [BK, BV] -> [ROWS, BV]
                acc += weight[:, None] * seen
                weight = weight_after
        at = (t * H + h)[:, None] * V + row_v[None, :]
        tl.store(of_slots_ptr + at, acc * scale, mask=there[:, None] & in_v[None, :])


@triton.jit
def read_kernel(
    q_ptr, k_ptr, v_ptr, within_ptr, own_ptr, start_weight_ptr, total_ptr, until_ptr, of_slots_ptr, o_ptr,
    token_age_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
    H: tl.constexpr, G: tl.constexpr, W: tl.constexpr, K: tl.constexpr, V: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, STORED: tl.constexpr,
    DECAYED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o_t = what the slots gave + sum_j Mx[t, j] L[t, age(t, j)] v_j"""
    h = tl.program_id(1).to(tl.int64)
    _, chunk, _, q_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    TILES: tl.constexpr = LONG // TILE
    dtype = v_ptr.dtype.element_ty
    rows = (last - first).to(tl.int32)
    column_k = tl.arange(0, BK)
    column_v = tl.program_id(2) * BV + tl.arange(0, BV)
    total_ptr += h * tokens
    until_ptr += h * tokens
    q_ptr += h // (H // G) * K
    k_ptr += h // (H // G) * K
    v_ptr += h * V
    of_slots_ptr += h * V
    o_ptr += h * V
    within_ptr += (chunk_first * W + h // (H // W)) * LONG

    # tokens of this tile
    v = load_tile(v_ptr, first, rows, column_v, H * V, V, TILE)
    if STORED:
        within = own_stored(within_ptr, q_tile, rows, W, LONG, TILE, False)
    else:
        q = load_tile(q_ptr, first, rows, column_k, G * K, K, TILE)
        k = load_tile_transposed(k_ptr, first, rows, column_k, G * K, K, TILE)
        within = tile_products(
            q, q_ptr, first, rows, k, k_ptr, first, rows, G * K, G * K, K, TILE, BK, PRECISION
        )  # fmt: skip
    within *= own_weights(own_ptr, h, first, rows, tokens, TILE, False) * scale
    acc = tl.dot(within.to(dtype), v, input_precision=PRECISION)  # [TILE, TILE] @ [TILE, BV] -> [TILE, BV]

    # tokens of earlier tiles of the chunk, which are full
    if q_tile > 0:
        weights = tile_weights(start_weight_ptr + h * tokens * MP, first, rows, MP, TILE, False)
        total_before = tl.load(total_ptr + first - 1)
        starts = token_starts(token_age_ptr, h, q_tile, chunk_first, tokens, TILES, TILE)
        for p in range(0, q_tile):
            j = chunk_first + p * TILE
            following = chunk_first + tl.minimum(p + 1, q_tile - 1) * TILE
            starts_after = token_starts(token_age_ptr, h, q_tile, following, tokens, TILES, TILE)
            v = load_tile(v_ptr, j, None, column_v, H * V, V, TILE)
            if STORED:
                at = stored_tile(q_tile * TILE, p * TILE, W, LONG, TILE, False)
                within = tl.load(within_ptr + at, mask=(tl.arange(0, TILE) < rows)[:, None], other=0.0)
            else:
                k = load_tile_transposed(k_ptr, j, None, column_k, G * K, K, TILE)
            if not DECAYED:
                between = tl.exp(total_before - tl.load(total_ptr + j + TILE - 1)) * scale
                until = tl.load(until_ptr + j + tl.arange(0, TILE)) * between
            if STORED:
                within = within.to(tl.float32)
            else:
                within = tile_products(
                    q, q_ptr, first, rows, k, k_ptr, j, None, G * K, G * K, K, TILE, BK, PRECISION
                )  # fmt: skip
            if not DECAYED:
                within *= until[None, :]
            within *= pair_weights(weights, starts, MP, PRECISION)
            acc += tl.dot(within.to(dtype), v, input_precision=PRECISION)
            starts = starts_after

    there = (tl.arange(0, TILE) < rows)[:, None] & (column_v < V)[None, :]
    at = tl.arange(0, TILE)[:, None] * (H * V) + column_v[None, :]
    if tl.load(used_ptr + chunk * H + h) > 0:
        acc += load_tile(of_slots_ptr, first, rows, column_v, H * V, V, TILE)
    tl.store(o_ptr + first * (H * V) + at, acc.to(dtype), mask=there)
