# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The read: `o_t = sum_j Mx[t, j] L[t, age(t, j)] v_j + sum_i w[i, t] Qe_t S_i`.

The first sum is over the chunk's tokens, tile by tile; the second is one product of inner length `used K`, over the
states stored at the chunk's start. `Qe_t = scale exp(G_t) q_t`; for the delta rule q is Qe itself, G zero and scale one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.states import start_row
from dla_kernels.reader.fused.states_layout import StateRows, slot_offset
from dla_kernels.reader.fused.weights import own_tile_weights, pair_weights, tile_weights, token_starts
from dla_kernels.reader.fused.within import within_tile


def read(
    q: Tensor, k: Tensor, v: Tensor, within: Tensor | None, slot_weight: Tensor, weight: Tensor, total: Tensor,
    kept: StateRows, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_state: bool,
) -> Tensor:  # fmt: skip
    """o `[tokens, H, V]` from q, k `[tokens, G, K]`, v, Mx `[tokens, H, LONG]` or None (then made of q and k),
    slot_weight `[tokens, H, M]`, weight = w `[H, M, tokens]`, total = G `[H, tokens]`."""
    (_, groups, key_dim), (_, heads, value_dim) = q.shape, v.shape
    slots = slot_weight.shape[-1]
    o = torch.empty_like(v)
    grid = (pieces.tiles, heads, triton.cdiv(value_dim, tiles.block_v))
    read_kernel[grid](
        q, k, v, v if within is None else within, slot_weight, weight, total, kept.high, o,
        tables.old, tables.inner, tables.token_age, tables.used,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, pieces.tokens, scale,
        H=heads, G=groups, K=key_dim, V=value_dim, M=slots, MP=padded_slots(slots), TILE=pieces.tile, LONG=pieces.long,
        BK=tiles.block_k, BV=tiles.block_v, HAS_STATE=has_state, STORED=within is not None, PRECISION="ieee",
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return o


@triton.jit
def read_kernel(
    q_ptr, k_ptr, v_ptr, within_ptr, slot_weight_ptr, weight_ptr, total_ptr, high_ptr, o_ptr,
    old_ptr, inner_ptr, token_age_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr,
    STORED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o_t = sum_i w[i, t] Qe_t S_i + sum_j Mx[t, j] L[t, age(t, j)] v_j"""
    h = tl.program_id(1).to(tl.int64)
    n, chunk, _, q_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    TILES: tl.constexpr = LONG // TILE
    dtype = v_ptr.dtype.element_ty
    g = h // (H // G)
    t = first + tl.arange(0, TILE)
    there = t < last
    row_v = tl.program_id(2) * BV + tl.arange(0, BV)
    in_v = row_v < V
    acc = tl.zeros((TILE, BV), tl.float32)

    # slots: all weighted queries of one block of K before the next block, so that q is loaded once
    used = tl.load(used_ptr + chunk * H + h)
    factor = tl.exp(tl.load(total_ptr + h * tokens + t, mask=there, other=float("-inf"))) * scale
    for start in range(0, K, BK):
        row_k = start + tl.arange(0, BK)
        query = tl.load(
            q_ptr + (t * G + g)[:, None] * K + row_k[None, :], mask=there[:, None] & (row_k < K)[None, :], other=0.0
        )
        query = query.to(tl.float32) * factor[:, None]
        for i in range(0, used):
            weight = tl.load(weight_ptr + (h * M + i) * tokens + t, mask=there, other=0.0)
            at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + row_k[:, None] * V + row_v[None, :]
            state = tl.load(high_ptr + at, mask=(row_k < K)[:, None] & in_v[None, :], other=0.0)
            acc += tl.dot(
                (query * weight[:, None]).to(dtype), state, input_precision=PRECISION
            )  # [TILE, BK] @ [BK, BV]

    # tokens of earlier tiles of the chunk
    starts_weight = tile_weights(slot_weight_ptr, old_ptr, h, t, last, tokens, H, M, MP).to(dtype)
    for p in range(0, q_tile):
        j = chunk_first + p * TILE + tl.arange(0, TILE)
        starts = token_starts(token_age_ptr, h, q_tile, j, first, tokens, TILES)
        within = within_tile(
            q_ptr, k_ptr, within_ptr, total_ptr, tokens, h, t, last, j, first, chunk_first, scale,
            H, G, K, LONG, TILE, BK, STORED, PRECISION,
        )  # fmt: skip
        within *= pair_weights(starts_weight, starts, MP, PRECISION)
        v = tl.load(v_ptr + (j * H + h)[:, None] * V + row_v[None, :], mask=in_v[None, :], other=0.0)
        acc += tl.dot(within.to(dtype), v, input_precision=PRECISION)  # [TILE, TILE] @ [TILE, BV] -> [TILE, BV]

    # tokens of this tile
    within = within_tile(
        q_ptr, k_ptr, within_ptr, total_ptr, tokens, h, t, last, t, last, chunk_first, scale,
        H, G, K, LONG, TILE, BK, STORED, PRECISION,
    )  # fmt: skip
    within *= own_tile_weights(slot_weight_ptr, inner_ptr, h, t[:, None], t[None, :], first, last, tokens, H, M, TILE)
    inside = there[:, None] & in_v[None, :]
    v = tl.load(v_ptr + (t * H + h)[:, None] * V + row_v[None, :], mask=inside, other=0.0)
    acc += tl.dot(within.to(dtype), v, input_precision=PRECISION)
    tl.store(o_ptr + (t * H + h)[:, None] * V + row_v[None, :], acc.to(dtype), mask=inside)
