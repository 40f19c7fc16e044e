# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""What reading adds to the adjoint of the states: `E_i = sum_t (w[i, t] Qe_t)^T do_t` over a chunk's tokens.

It is computed for all chunks and slots in parallel; carry.py or states_delta.py then goes through the chunks. With the
weights `L[age + 1] - L[age]` in place of L this makes the second adjoint that the boundary gradient needs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables
from dla_kernels.reader.fused.configs import Tiles, inner_block
from dla_kernels.reader.fused.pieces import Pieces, locate
from dla_kernels.reader.fused.states_layout import StateRows, block_of, end_row, launches_of, slot_offset, store_state
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed


def slots_adjoint(
    q: Tensor, do: Tensor, weight: Tensor, scale: float, tables: AgeTables, pieces: Pieces, tiles: Tiles,
    *, has_state: bool, has_dfinal: bool,
) -> tuple[StateRows, Tensor | None]:  # fmt: skip
    """E of every chunk, from q `[tokens, G, K]`, do `[tokens, H, V]`, weight = `exp(G_t) w[i, t]` `[H, M, tokens]` float32.

    Returns E in rows for chunk ends, where that of a chunk is in the row of the chunk before it (row = chunk, or,
    without a gradient of the final states, chunk - n: a sequence's last chunk has none); and for sequences that began
    with states, E of their first chunks `[N, H, M, K, V]` float32.
    """
    (_, groups, key_dim), (_, heads, value_dim) = q.shape, do.shape
    slots = weight.shape[1]
    rows = pieces.chunks - (0 if has_dfinal else pieces.sequences)
    adjoint = StateRows(rows, heads, slots, key_dim, value_dim, do)
    dstate = None
    if has_state:
        shape = (pieces.sequences, heads, slots, key_dim, value_dim)
        dstate = torch.zeros(shape, dtype=torch.float32, device=do.device)
    block_k = inner_block(key_dim, tiles)
    # slots that share a program's loads: as many as its registers have room for sums
    together = min(triton.next_power_of_2(slots), 2 if block_k == 128 or q.dtype == torch.float32 else 4)
    blocks = triton.cdiv(key_dim, block_k) * triton.cdiv(value_dim, tiles.block_v)
    for begin, launched in launches_of(pieces.chunks):
        slots_adjoint_kernel[(blocks * triton.cdiv(slots, together), heads, launched)](
            q, do, weight, adjoint.high, adjoint.low, adjoint.high if dstate is None else dstate, tables.used,
            pieces.chunk_sequence, pieces.chunk_number, pieces.cu, pieces.tokens, begin, scale,
            H=heads, G=groups, K=key_dim, V=value_dim, M=slots, SLOTS=together, TILE=pieces.tile, LONG=pieces.long, BK=block_k,
            BV=tiles.block_v, HAS_STATE=has_state, HAS_DFINAL=has_dfinal, SPLIT=adjoint.split,
            PRECISION="ieee", num_warps=tiles.warps, num_stages=1,
        )  # fmt: skip
    return adjoint, dstate


@triton.jit
def reads_adjoint(
    q_ptr, do_ptr, weight_ptr, tokens, h, i, first, last, row_k, row_v, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, SLOTS: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`sum_t (w[i, t] Qe_t)^T do_t` over the tokens `first..last` of a chunk, block `row_k` x `row_v`, for the slots
    from i on; only the first SLOTS of the four results are used, and those of slots not in use are meaningless."""
    acc0 = tl.zeros((row_k.shape[0], row_v.shape[0]), tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    q_ptr += h // (H // G) * K
    do_ptr += h * V
    weight_ptr += h * M * tokens
    full = (last - first) // TILE
    for p in range(0, full):
        acc0, acc1, acc2, acc3 = reads_of_tile(
            acc0, acc1, acc2, acc3, q_ptr, do_ptr, weight_ptr, tokens, i, first + p * TILE, None, row_k, row_v, scale,
            H, G, K, V, M, SLOTS, TILE, PRECISION,
        )  # fmt: skip
    rows = (last - first - full * TILE).to(tl.int32)
    if rows > 0:
        acc0, acc1, acc2, acc3 = reads_of_tile(
            acc0, acc1, acc2, acc3, q_ptr, do_ptr, weight_ptr, tokens, i, last - rows, rows, row_k, row_v, scale,
            H, G, K, V, M, SLOTS, TILE, PRECISION,
        )  # fmt: skip
    return acc0, acc1, acc2, acc3


@triton.jit
def reads_of_tile(
    acc0, acc1, acc2, acc3, q_ptr, do_ptr, weight_ptr, tokens, i, t, rows, row_k, row_v, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, SLOTS: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums plus what the tokens from t on, `rows` of them (None: a tile), add to them."""
    # all loads first: a product waits for what comes before it in the program, and later loads wait for the product
    q = load_tile_transposed(q_ptr, t, rows, row_k, G * K, K, TILE)
    do = load_tile(do_ptr, t, rows, row_v, H * V, V, TILE)
    weight0 = weights_of_slot(weight_ptr, tokens, i, t, rows, M, TILE)
    if SLOTS > 1:
        weight1 = weights_of_slot(weight_ptr, tokens, i + 1, t, rows, M, TILE)
    if SLOTS > 2:
        weight2 = weights_of_slot(weight_ptr, tokens, i + 2, t, rows, M, TILE)
        weight3 = weights_of_slot(weight_ptr, tokens, i + 3, t, rows, M, TILE)
    do = do.to(tl.float32)  # once for all slots
    acc0 += read_by_slot(q, do, weight0, scale, PRECISION)
    if SLOTS > 1:
        acc1 += read_by_slot(q, do, weight1, scale, PRECISION)
    if SLOTS > 2:
        acc2 += read_by_slot(q, do, weight2, scale, PRECISION)
        acc3 += read_by_slot(q, do, weight3, scale, PRECISION)
    return acc0, acc1, acc2, acc3


@triton.jit
def weights_of_slot(weight_ptr, tokens, i, t, rows, M: tl.constexpr, TILE: tl.constexpr):
    """Weights of slot i at the tokens from t on `[TILE]`; those of the last slot if i is beyond it."""
    row = tl.arange(0, TILE)
    at = weight_ptr + tl.minimum(i, M - 1).to(tl.int64) * tokens + t + row
    if rows is None:
        return tl.load(at)
    else:
        return tl.load(at, mask=row < rows, other=0.0)


@triton.jit
def read_by_slot(q, do, weight, scale, PRECISION: tl.constexpr):
    """`sum_t q_t^T w[i, t] do_t` `[BK, BV]` float32 for q `[BK, TILE]`, do `[TILE, BV]` float32, weight `[TILE]`
    float32: the weights of tokens multiply do, so that q enters the products of all slots unchanged."""
    # scale here, not at the end: otherwise, for `mma.sync`, Triton would have every warp weight all of do by itself
    right = (do * (weight * scale)[:, None]).to(q.dtype)
    return tl.dot(q, right, input_precision=PRECISION)  # [BK, TILE] @ [TILE, BV] -> [BK, BV]


@triton.jit
def store_adjoint(
    dhigh_ptr, dlow_ptr, dstate_ptr, chunk, n, c, h, i, used, acc, row_k, row_v,
    H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, V: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DFINAL: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Store E of slot i, if it is in use, for the start of a chunk."""
    inside = (row_k < K)[:, None] & (row_v < V)[None, :] & (i < used)
    block = row_k[:, None] * V + row_v[None, :]
    if c > 0:
        at = slot_offset(end_row(chunk - 1, n, HAS_DFINAL), h, i, H, M, K, V) + block
        store_state(dhigh_ptr, dlow_ptr, at, acc, inside, SPLIT)
    elif HAS_STATE:
        tl.store(dstate_ptr + slot_offset(n, h, i, H, M, K, V) + block, acc, mask=inside)


@triton.jit(do_not_specialize=["begin"])
def slots_adjoint_kernel(
    q_ptr, do_ptr, weight_ptr, dhigh_ptr, dlow_ptr, dstate_ptr, used_ptr,
    sequence_ptr, number_ptr, cu_ptr, tokens, begin, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, SLOTS: tl.constexpr,
    TILE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_DFINAL: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """E_i = sum_t (w[i, t] Qe_t)^T do_t, for SLOTS slots, which share loads; for the chunks from `begin` on"""
    # neighbors in the grid share q and do of one chunk
    PARTS: tl.constexpr = (M + SLOTS - 1) // SLOTS
    i = SLOTS * (tl.program_id(0) % PARTS)
    h = tl.program_id(1).to(tl.int64)
    chunk = begin + tl.program_id(2)
    n, c, first, last = locate(chunk, sequence_ptr, number_ptr, cu_ptr, LONG)
    used = tl.load(used_ptr + chunk * H + h)
    if i < used:
        row_k, row_v = block_of(tl.program_id(0) // PARTS, K, V, BK, BV)
        acc0, acc1, acc2, acc3 = reads_adjoint(
            q_ptr, do_ptr, weight_ptr, tokens, h, i, first, last, row_k, row_v, scale,
            H, G, K, V, M, SLOTS, TILE, PRECISION,
        )  # fmt: skip
        store_adjoint(
            dhigh_ptr, dlow_ptr, dstate_ptr, chunk, n, c, h, i, used, acc0, row_k, row_v,
            H, M, K, V, HAS_STATE, HAS_DFINAL, SPLIT,
        )  # fmt: skip
        if SLOTS > 1:
            store_adjoint(
                dhigh_ptr, dlow_ptr, dstate_ptr, chunk, n, c, h, i + 1, used, acc1, row_k, row_v,
                H, M, K, V, HAS_STATE, HAS_DFINAL, SPLIT,
            )  # fmt: skip
        if SLOTS > 2:
            store_adjoint(
                dhigh_ptr, dlow_ptr, dstate_ptr, chunk, n, c, h, i + 2, used, acc2, row_k, row_v,
                H, M, K, V, HAS_STATE, HAS_DFINAL, SPLIT,
            )  # fmt: skip
            store_adjoint(
                dhigh_ptr, dlow_ptr, dstate_ptr, chunk, n, c, h, i + 3, used, acc3, row_k, row_v,
                H, M, K, V, HAS_STATE, HAS_DFINAL, SPLIT,
            )  # fmt: skip
