# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Gradient of the slot weights and, for the delta rule, of Mx. For the gradient of boundaries, sums of what one more
shift would change.

    dMx[t, j] = L[t, age(t, j)] (do_t . v_j)
    dL[t, a]  = sum of Mx[t, j] (do_t . v_j) over tokens j of age a  +  sum of dw[i, t] over slots i of age a
    y[t, j]   = (L[t, age(t, j) + 1] - L[t, age(t, j)]) Mx[t, j] (do_t . v_j), likewise for slots in place of j

Slots and tokens of earlier tiles are first summed by their age at the tile's start, as a product with a 0/1 matrix.
Then all are summed by their age at t: numbers of one age lie side by side, so their sum is the difference of two
running sums, which for 16-bit types come from the same products. No atomics are needed, because a program owns its
rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles, inner_block
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.selection import select_columns
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed, tile_products
from dla_kernels.reader.fused.weights import Weights, own_weights, pair_weights, tile_weights, token_starts
from dla_kernels.reader.fused.within import Within, own_decays, own_stored, stored_tile


def weights_backward(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, within: Within, weights: Weights, total: Tensor,
    until: Tensor, dweight: Tensor, changes: Weights | None, slot_weight: Tensor, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles,
) -> tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, Tensor, Tensor] | None]:  # fmt: skip
    """dL like the slot weights `[tokens, H, M]`; for the delta rule dMx `[tokens, H, LONG]`, else None; with plain decay
    q . dq, which is the sum of all weights times their gradients, `[H, tokens]` float32; and, if `changes` of weights are
    given, the sums of y over rows (all j before t, and the slots) and over columns (all t of j's chunk after j), and the
    squares of what slots contribute to the rows, each `[H, tokens]` float32. dweight is that of queries_backward."""
    (tokens, groups, key_dim), (_, heads, value_dim) = q.shape, v.shape
    slots = weights.slots
    gate = changes is not None
    dslot_weight = torch.empty_like(slot_weight)
    qdq = torch.empty(heads, 0 if within.decayed else tokens, dtype=torch.float32, device=v.device)
    dwithin = torch.empty_like(within.stored) if within.decayed and within.stored is not None else None
    row_sums = torch.empty(heads, tokens if gate else 0, dtype=torch.float32, device=v.device)
    squares = torch.empty_like(row_sums)
    # one row for every tile that reads j, so that no tile adds to another one's numbers
    shape = (heads, pieces.long // pieces.tile, tokens if gate else 0)
    column_sums = torch.zeros(shape, dtype=torch.float32, device=v.device)
    changes = weights if changes is None else changes
    weights_backward_kernel[(pieces.tiles, heads)](
        q, k, v, do, v if within.stored is None else within.stored, weights.own, weights.at_tile, total, until, dweight,
        changes.own, changes.at_tile, changes.at_chunk, weights.at_chunk, dslot_weight, qdq, dslot_weight if dwithin is None else dwithin,
        row_sums, squares, column_sums, tables.younger, tables.older, tables.token_age, tables.slot_age, tables.used,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, tokens,
        scale if within.stored is None else 1.0,
        H=heads, G=groups, K=key_dim, V=value_dim, M=slots, MP=padded_slots(slots), TILE=pieces.tile, LONG=pieces.long,
        BK=inner_block(key_dim, tiles), BV=tiles.block_v, PARTS=dweight.shape[0], GATE=gate, **within.sizes(),
        PRECISION="ieee", num_warps=tiles.warps, num_stages=1,
    )  # fmt: skip
    return dslot_weight, dwithin, qdq, (row_sums, column_sums.sum(1), squares) if gate else None


@triton.jit
def weights_backward_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, within_ptr, own_ptr, start_weight_ptr, total_ptr, until_ptr, dweight_ptr,
    own_change_ptr, start_change_ptr, slot_change_ptr, chunk_weight_ptr, dslot_weight_ptr, qdq_ptr,
    dwithin_ptr, row_sums_ptr, squares_ptr, column_sums_ptr,
    younger_ptr, older_ptr, token_age_ptr, slot_age_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens, scale,
    H: tl.constexpr, G: tl.constexpr, W: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr,
    MP: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PARTS: tl.constexpr,
    STORED: tl.constexpr, DECAYED: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dL[t, a] = sum over age(t, j) = a of Mx[t, j] (do_t . v_j) + sum over slots i of age a of dw[i, t]; GATE: y's sums, too"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    _, chunk, _, q_tile, chunk_first, first, last = locate_tile(
        tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    TILES: tl.constexpr = LONG // TILE
    dtype = v_ptr.dtype.element_ty
    EXACT: tl.constexpr = dtype == tl.float32
    rows = (last - first).to(tl.int32)
    row = tl.arange(0, TILE)
    column_k, column_v = tl.arange(0, BK), tl.arange(0, BV)
    slot = tl.arange(0, MP)
    in_m = slot < M
    by_slot = (row < rows)[:, None] & in_m[None, :]
    total_ptr += h * tokens
    until_ptr += h * tokens
    q_ptr += h // (H // G) * K
    k_ptr += h // (H // G) * K
    v_ptr += h * V
    do_ptr += h * V
    within_ptr += (chunk_first * W + h // (H // W)) * LONG
    dwithin_ptr += (chunk_first * W + h // (H // W)) * LONG

    # slots, by age at the tile's start
    dslots = tl.zeros((TILE, MP), tl.float32)
    in_use = (row < rows)[:, None] & (slot < tl.load(used_ptr + chunk * H + h))[None, :]
    for part in range(0, PARTS):
        at_slot = ((part * H + h) * M + slot)[None, :] * tokens + first + row[:, None]
        dslots += tl.load(dweight_ptr + at_slot, mask=in_use, other=0.0)
    if GATE:
        at_slot = (h * M + slot)[None, :] * tokens + first + row[:, None]
        change = tl.load(slot_change_ptr + at_slot, mask=in_use, other=0.0)
        of_slots = dslots * change
        row_sums = tl.sum(of_slots, 1)
        tl.store(squares_ptr + h * tokens + first + row, tl.sum(of_slots * of_slots, 1), mask=row < rows)
        column_sums_ptr += (h * TILES + q_tile) * tokens
    if not DECAYED:
        at_slot = (h * M + slot)[None, :] * tokens + first + row[:, None]
        qdq = tl.sum(dslots * tl.load(chunk_weight_ptr + at_slot, mask=in_use, other=0.0), 1)
        total = tl.load(total_ptr + first + row, mask=row < rows, other=float("-inf"))
        dslots *= tl.exp(total)[:, None]
    slot_starts = tl.load(slot_age_ptr + (tile.to(tl.int64) * H + h) * M + slot, mask=in_m, other=0).to(tl.int32)
    counted_slots = counted_by(slot_starts, slot, dtype, EXACT)
    dstarts = select_columns(dslots.to(dtype), counted_slots, PRECISION)  # [TILE, MP] @ [MP, MP] -> [TILE, MP]

    # tokens of earlier tiles of the chunk, which are full, likewise
    do = load_tile(do_ptr, first, rows, column_v, H * V, V, TILE)
    if not STORED:
        q = load_tile(q_ptr, first, rows, column_k, G * K, K, TILE)
    if q_tile > 0:
        weights = tile_weights(start_weight_ptr + h * tokens * MP, first, rows, MP, TILE, False)
        if GATE:
            changes = tile_weights(start_change_ptr + h * tokens * MP, first, rows, MP, TILE, False)
        total_before = tl.load(total_ptr + first - 1)
        of_pairs = tl.zeros((TILE, MP), tl.float32)
        starts = token_starts(token_age_ptr, h, q_tile, chunk_first, tokens, TILES, TILE)
        for p in range(0, q_tile):
            j = chunk_first + p * TILE
            following = chunk_first + tl.minimum(p + 1, q_tile - 1) * TILE
            starts_after = token_starts(token_age_ptr, h, q_tile, following, tokens, TILES, TILE)
            v = load_tile_transposed(v_ptr, j, None, column_v, H * V, V, TILE)
            if STORED:
                at = stored_tile(q_tile * TILE, p * TILE, W, LONG, TILE, False)
                within = tl.load(within_ptr + at, mask=(row < rows)[:, None], other=0.0)
            else:
                k = load_tile_transposed(k_ptr, j, None, column_k, G * K, K, TILE)
            if not DECAYED:
                between = tl.exp(total_before - tl.load(total_ptr + j + TILE - 1)) * scale
                until = tl.load(until_ptr + j + row) * between
            products = tile_products(
                do, do_ptr, first, rows, v, v_ptr, j, None, H * V, H * V, V, TILE, BV, PRECISION
            )  # fmt: skip
            if DECAYED:
                dwithin = (products * pair_weights(weights, starts, MP, PRECISION)).to(dtype)
                tl.store(dwithin_ptr + at, dwithin, mask=(row < rows)[:, None])
            if STORED:
                products *= within.to(tl.float32)
            else:
                products *= tile_products(
                    q, q_ptr, first, rows, k, k_ptr, j, None, G * K, G * K, K, TILE, BK, PRECISION
                )  # fmt: skip
            if not DECAYED:
                products *= until[None, :]
            if GATE:
                y = products * pair_weights(changes, starts, MP, PRECISION)
                row_sums += tl.sum(y, 1)
                tl.store(column_sums_ptr + j + row, tl.sum(y, 0))
            counted = counted_by(starts, slot, dtype, EXACT)
            of_pairs += select_columns(products.to(dtype), counted, PRECISION)  # [TILE, TILE] @ [TILE, MP]
            starts = starts_after
        if not DECAYED:
            qdq += tl.sum(of_pairs * by_place(start_weight_ptr + h * tokens * MP, first, rows, MP, TILE, EXACT), 1)
            total = tl.load(total_ptr + first + row, mask=row < rows, other=float("-inf"))
            of_pairs *= tl.exp(total - total_before)[:, None]
        dstarts += of_pairs

    # tokens of this tile
    v = load_tile_transposed(v_ptr, first, rows, column_v, H * V, V, TILE)
    products = tile_products(
        do, do_ptr, first, rows, v, v_ptr, first, rows, H * V, H * V, V, TILE, BV, PRECISION
    )  # fmt: skip
    if DECAYED:
        at = stored_tile(q_tile * TILE, q_tile * TILE, W, LONG, TILE, False)
        dwithin = products * own_weights(own_ptr, h, first, rows, tokens, TILE, False)
        tl.store(dwithin_ptr + at, dwithin.to(dtype), mask=(row < rows)[:, None])
    if STORED:
        within = own_stored(within_ptr, q_tile, rows, W, LONG, TILE, False)
    else:
        k = load_tile_transposed(k_ptr, first, rows, column_k, G * K, K, TILE)
        within = tile_products(
            q, q_ptr, first, rows, k, k_ptr, first, rows, G * K, G * K, K, TILE, BK, PRECISION
        )  # fmt: skip
    if not DECAYED:  # rounded as values.py has it for k . dk: of their difference running sums are made
        seen = (within * (own_weights(own_ptr, h, first, rows, tokens, TILE, False) * scale)).to(dtype).to(tl.float32)
        qdq += tl.sum(seen * products, 1)
        tl.store(qdq_ptr + h * tokens + first + row, qdq, mask=row < rows)
        within *= scale
    products *= within

    if GATE:  # a token with itself would be in both sums
        y = products * own_weights(own_change_ptr, h, first, rows, tokens, TILE, False)
        y = tl.where(row[:, None] == row[None, :], 0.0, y)
        tl.store(row_sums_ptr + h * tokens + first + row, row_sums + tl.sum(y, 1), mask=row < rows)
        tl.store(column_sums_ptr + first + row, tl.sum(y, 0), mask=row < rows)
    if not DECAYED:
        products *= own_decays(total_ptr, first, rows, TILE, False)

    # sums by age at t: slots are ordered from young to old, tokens of this tile from old to young
    at = (h * tokens + first) * MP + row[:, None] * MP + slot[None, :]
    there = (row < rows)[:, None]
    upto = tl.load(younger_ptr + at, mask=there, other=0).to(tl.int32)
    before, is_first = tl.maximum(slot - 1, 0), slot == 0
    if EXACT:
        dweights = exact_sums_by_age(dstarts, upto, before, is_first)
    else:
        dweights = sums_by_age(dstarts, upto, before, is_first)
    upto = tl.load(older_ptr + at, mask=there, other=0).to(tl.int32)
    before, is_first = tl.minimum(slot + 1, MP - 1), slot == M - 1
    if EXACT:
        dweights += exact_sums_by_age(products, upto, before, is_first)
    else:
        counted_rows = counted_by(row, row, dtype, EXACT)
        running = select_columns(products.to(dtype), counted_rows, PRECISION)  # [TILE, TILE] @ [TILE, TILE]
        dweights += sums_by_age(running, upto, before, is_first)
    at = (first * H + h) * M + row[:, None] * (H * M) + slot[None, :]
    tl.store(dslot_weight_ptr + at, dweights.to(dslot_weight_ptr.dtype.element_ty), mask=by_slot)


@triton.jit
def counted_by(place, upto, dtype: tl.constexpr, EXACT: tl.constexpr):
    """The 0/1 matrix `[places, upto]` that turns numbers at places into their running sums, or, if EXACT, into the
    numbers in order, from which exact_sums_by_age makes running sums."""
    if EXACT:
        return (place[:, None] == upto[None, :]).to(dtype)
    else:
        return (place[:, None] <= upto[None, :]).to(dtype)


@triton.jit
def by_place(at_tile_ptr, first, rows, MP: tl.constexpr, TILE: tl.constexpr, EXACT: tl.constexpr):
    """The factors `[TILE, MP]` float32 for the numbers that counted_by has made, with which their sum is that of the
    original numbers times their weights."""
    weights = tile_weights(at_tile_ptr, first, rows, MP, TILE, False).to(tl.float32)
    if not EXACT:  # sum_a (r_a - r_{a - 1}) w_a = sum_a r_a (w_a - w_{a + 1})
        row, slot = tl.arange(0, TILE), tl.arange(0, MP)
        there = (row < rows)[:, None] & (slot < MP - 1)[None, :]
        at = at_tile_ptr + first * MP + row[:, None] * MP + slot[None, :] + 1
        weights -= tl.load(at, mask=there, other=0.0).to(tl.float32)
    return weights


@triton.jit
def sums_by_age(running, upto, before, is_first):
    """The sums by age `[TILE, MP]`, from the running sums `[TILE, N]` over each row of numbers in the order of ages.

    The numbers up to and including age a are the first `upto[:, a]` ones, with upto `[TILE, MP]`; age `before[a]`
    precedes age a, unless a is the first age in this order.
    """
    at = tl.where(upto > 0, tl.gather(running, tl.maximum(upto - 1, 0), 1), 0.0)
    return at - tl.where(is_first[None, :], 0.0, tl.gather(at, tl.broadcast_to(before[None, :], at.shape), 1))


@triton.jit
def exact_sums_by_age(x, upto, before, is_first):
    """The same from the numbers x themselves, in float32.

    Differences of running sums have the error of everything that was summed. So x is split into two parts: one rounded
    to so few digits that its sums are exact, and the rest, which is small beside it.
    """
    large = 4.0 * x.shape[1] * tl.max(tl.abs(x), 1)[:, None]
    high = (x + large) - large
    of_high = sums_by_age(tl.cumsum(high, 1), upto, before, is_first)
    return of_high + sums_by_age(tl.cumsum(x - high, 1), upto, before, is_first)
