# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""What reading adds to the adjoint of the states: `E_i = sum_t (w[i, t] Qe_t)^T do_t` over a chunk's tokens.

All chunks and slots at once; carry.py or states_delta.py then goes through the chunks. With the weights `L[age + 1] - L[age]`
in place of L this makes the second adjoint that the boundary gradient needs.
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

    Returns the rows of the ends of the chunks before (row = chunk, or, without a gradient of the states at the ends, chunk - n:
    a sequence's last chunk has none), and for sequences that began with states, E of their first chunks `[N, H, M, K, V]` float32.
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
    blocks = triton.cdiv(key_dim, block_k) * triton.cdiv(value_dim, tiles.block_v)
    for begin, launched in launches_of(pieces.chunks):
        slots_adjoint_kernel[(blocks * triton.cdiv(slots, 2), heads, launched)](
            q, do, weight, adjoint.high, adjoint.low, adjoint.high if dstate is None else dstate, tables.used,
            pieces.chunk_sequence, pieces.chunk_number, pieces.cu, pieces.tokens, begin, scale,
            H=heads, G=groups, K=key_dim, V=value_dim, M=slots, TILE=pieces.tile, LONG=pieces.long, BK=block_k,
            BV=tiles.block_v, HAS_STATE=has_state, HAS_DFINAL=has_dfinal, SPLIT=adjoint.split,
            PRECISION="ieee", num_warps=tiles.warps, num_stages=1,
        )  # fmt: skip
    return adjoint, dstate


@triton.jit
def reads_adjoint(
    q_ptr, do_ptr, weight_ptr, tokens, h, i, first, last, row_k, row_v, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`sum_t (w[i, t] Qe_t)^T do_t` over the tokens `first..last` of a chunk, block `row_k` x `row_v`, for slots i and i + 1
    (anything, where that is not in use)."""
    acc = tl.zeros((row_k.shape[0], row_v.shape[0]), tl.float32)
    older = tl.zeros((row_k.shape[0], row_v.shape[0]), tl.float32)
    q_ptr += h // (H // G) * K
    do_ptr += h * V
    weight_ptr += (h * M + i) * tokens
    next_slot = tl.where(i + 1 < M, tokens, 0)
    full = (last - first) // TILE
    for p in range(0, full):
        acc, older = reads_of_tile(
            acc, older, q_ptr, do_ptr, weight_ptr, next_slot, first + p * TILE, None, row_k, row_v, scale,
            H, G, K, V, TILE, PRECISION,
        )  # fmt: skip
    rows = (last - first - full * TILE).to(tl.int32)
    if rows > 0:
        acc, older = reads_of_tile(
            acc, older, q_ptr, do_ptr, weight_ptr, next_slot, last - rows, rows, row_k, row_v, scale,
            H, G, K, V, TILE, PRECISION,
        )  # fmt: skip
    return acc, older


@triton.jit
def reads_of_tile(
    acc, older, q_ptr, do_ptr, weight_ptr, next_slot, t, rows, row_k, row_v, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums for two slots and what the tokens from t on, `rows` of them (None: a tile), add to them.

    The numbers of a token multiply do: so q enters the products as it is, loaded once for both slots and all of its block of K.
    """
    dtype = do_ptr.dtype.element_ty
    row = tl.arange(0, TILE)
    q = load_tile_transposed(q_ptr, t, rows, row_k, G * K, K, TILE)
    do = load_tile(do_ptr, t, rows, row_v, H * V, V, TILE).to(tl.float32)
    if rows is None:
        weight = tl.load(weight_ptr + t + row)
        weight_older = tl.load(weight_ptr + next_slot + t + row)
    else:
        weight = tl.load(weight_ptr + t + row, mask=row < rows, other=0.0)
        weight_older = tl.load(weight_ptr + next_slot + t + row, mask=row < rows, other=0.0)
    right = (do * (weight * scale)[:, None]).to(dtype)
    acc += tl.dot(q, right, input_precision=PRECISION)  # [BK, TILE] @ [TILE, BV] -> [BK, BV]
    right = (do * (weight_older * scale)[:, None]).to(dtype)
    older += tl.dot(q, right, input_precision=PRECISION)
    return acc, older


@triton.jit(do_not_specialize=["begin"])
def slots_adjoint_kernel(
    q_ptr, do_ptr, weight_ptr, dhigh_ptr, dlow_ptr, dstate_ptr, used_ptr,
    sequence_ptr, number_ptr, cu_ptr, tokens, begin, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr,
    LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_DFINAL: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """E_i = sum_t (w[i, t] Qe_t)^T do_t, for two slots, which share what is loaded; of the chunks from `begin` on"""
    # neighbours in the grid share q and do of one chunk
    PAIRS: tl.constexpr = (M + 1) // 2
    i = 2 * (tl.program_id(0) % PAIRS)
    block = tl.program_id(0) // PAIRS
    h = tl.program_id(1).to(tl.int64)
    chunk = begin + tl.program_id(2)
    n, c, first, last = locate(chunk, sequence_ptr, number_ptr, cu_ptr, LONG)
    used = tl.load(used_ptr + chunk * H + h)
    if i < used:
        row_k, row_v = block_of(block, K, V, BK, BV)
        acc, acc_older = reads_adjoint(
            q_ptr, do_ptr, weight_ptr, tokens, h, i, first, last, row_k, row_v, scale,
            H, G, K, V, M, TILE, PRECISION,
        )  # fmt: skip
        inside = (row_k < K)[:, None] & (row_v < V)[None, :]
        block_at = row_k[:, None] * V + row_v[None, :]
        if c > 0:
            at = slot_offset(end_row(chunk - 1, n, HAS_DFINAL), h, i, H, M, K, V) + block_at
            store_state(dhigh_ptr, dlow_ptr, at, acc, inside, SPLIT)
            store_state(dhigh_ptr, dlow_ptr, at + K * V, acc_older, inside & (i + 1 < used), SPLIT)
        elif HAS_STATE:
            at = slot_offset(n, h, i, H, M, K, V) + block_at
            tl.store(dstate_ptr + at, acc, mask=inside)
            tl.store(dstate_ptr + at + K * V, acc_older, mask=inside & (i + 1 < used))
