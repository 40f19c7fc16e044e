# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The read: `o_t = sum_j Mx[t, j] L[t, age(t, j)] v_j + sum_i w[i, t] Qe_t S_i`.

The second sum, over the states stored at the chunk's start, comes first, in a kernel of its own: `w[i, t]` and `exp(G_t)` are
numbers of a row, so that `q_t S_i` is a product of the inputs as they are, weighted afterwards in float32. The first sum is
over the chunk's tokens, tile by tile. `Qe_t = scale exp(G_t) q_t`; for the delta rule q is Qe itself, G zero and scale one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces, locate_rows, locate_tile
from dla_kernels.reader.fused.states import start_row
from dla_kernels.reader.fused.states_layout import StateRows, slot_offset
from dla_kernels.reader.fused.weights import Weights, own_tile_weights, pair_weights, tile_weights, token_starts
from dla_kernels.reader.fused.within import within_tile


def read(
    q: Tensor, k: Tensor, v: Tensor, within: Tensor | None, weights: Weights, total: Tensor,
    kept: StateRows, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_state: bool,
) -> Tensor:  # fmt: skip
    """o `[tokens, H, V]` from q, k `[tokens, G, K]`, v, Mx `[tokens, H, LONG]` or None (then made of q and k),
    total = G `[H, tokens]`."""
    (_, groups, key_dim), (_, heads, value_dim) = q.shape, v.shape
    slots = weights.by_age.shape[-1]
    o = torch.empty_like(v)
    of_slots = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    blocks_v = triton.cdiv(value_dim, tiles.block_v)
    sizes = {
        "H": heads,
        "G": groups,
        "K": key_dim,
        "V": value_dim,
        "M": slots,
        "LONG": pieces.long,
        "PRECISION": "ieee",
    }
    sizes |= {"BV": tiles.block_v, "num_warps": tiles.warps}
    read_slots_kernel[(pieces.chunks * (pieces.long // tiles.rows), heads, blocks_v)](
        q, weights.at_chunk, total, kept.high, of_slots, tables.used, pieces.chunk_sequence, pieces.chunk_number, pieces.cu,
        pieces.tokens, scale, BK=inner_block(key_dim, tiles), ROWS=tiles.rows, HAS_STATE=has_state,
        num_stages=tiles.stages, **sizes,
    )  # fmt: skip
    read_kernel[(pieces.tiles, heads, blocks_v)](
        q, k, v, v if within is None else within, weights.by_age, weights.at_tile, total, of_slots, o,
        tables.inner, tables.token_age, tables.used,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, pieces.tokens, scale,
        BK=tiles.block_k, MP=padded_slots(slots), TILE=pieces.tile, STORED=within is not None,
        num_stages=1, **sizes,
    )  # fmt: skip
    return o


def inner_block(size: int, tiles: Tiles) -> int:
    """The part of K that one product with a state takes: all of it where 128 holds it."""
    return 128 if 64 < size <= 128 and tiles.block_k == 64 else tiles.block_k


@triton.jit
def read_slots_kernel(
    q_ptr, weight_ptr, total_ptr, high_ptr, of_slots_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr, tokens, scale,
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
            for i in range(0, used):
                at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + row_k[:, None] * V + row_v[None, :]
                state = tl.load(high_ptr + at, mask=in_k[:, None] & in_v[None, :], other=0.0)
                weight = tl.load(weight_ptr + (h * M + i) * tokens + t, mask=there, other=0.0)
                seen = tl.dot(q, state, input_precision=PRECISION)  # [ROWS, BK] @ [BK, BV] -> [ROWS, BV]
                acc += weight[:, None] * seen
        factor = tl.exp(tl.load(total_ptr + h * tokens + t, mask=there, other=float("-inf"))) * scale
        at = (t * H + h)[:, None] * V + row_v[None, :]
        tl.store(of_slots_ptr + at, acc * factor[:, None], mask=there[:, None] & in_v[None, :])


@triton.jit
def read_kernel(
    q_ptr, k_ptr, v_ptr, within_ptr, slot_weight_ptr, start_weight_ptr, total_ptr, of_slots_ptr, o_ptr,
    inner_ptr, token_age_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, STORED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """o_t = what the slots gave + sum_j Mx[t, j] L[t, age(t, j)] v_j"""
    h = tl.program_id(1).to(tl.int64)
    _, chunk, _, q_tile, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    TILES: tl.constexpr = LONG // TILE
    dtype = v_ptr.dtype.element_ty
    t = first + tl.arange(0, TILE)
    there = t < last
    row_v = tl.program_id(2) * BV + tl.arange(0, BV)
    in_v = row_v < V
    acc = tl.zeros((TILE, BV), tl.float32)

    # tokens of earlier tiles of the chunk
    starts_weight = tile_weights(start_weight_ptr, h, t, last, tokens, MP)
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
    if tl.load(used_ptr + chunk * H + h) > 0:
        acc += tl.load(of_slots_ptr + (t * H + h)[:, None] * V + row_v[None, :], mask=inside, other=0.0)
    tl.store(o_ptr + (t * H + h)[:, None] * V + row_v[None, :], acc.to(dtype), mask=inside)
