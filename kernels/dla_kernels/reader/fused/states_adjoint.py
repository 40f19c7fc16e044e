# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The adjoint of the states at the start of every chunk, for plain decay.

    dS_i = exp(G_end) dS_{final_slot[i]}(next) + sum_t (w[i, t] Qe_t)^T do_t

What reading adds is made where it is added, so that a state's adjoint is written once. Like `advance_states`, every chunk
is a launch. With the weights `L[age + 1] - L[age]` in place of L this is the second adjoint that the boundary gradient needs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.states import block_of, blocks_of, end_row, start_row
from dla_kernels.reader.fused.states_layout import StateRows, load_state, slot_offset, store_state
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed


def states_adjoint(
    q: Tensor, do: Tensor, weight: Tensor, total: Tensor, kept: StateRows, dfinal: Tensor | None, scale: float,
    tables: AgeTables, pieces: Pieces, tiles: Tiles, *, has_state: bool, want_carry: bool,
) -> tuple[StateRows, Tensor | None, Tensor]:  # fmt: skip
    """The adjoint of `advance_states`, with what reading adds on the way; weight = w `[H, M, tokens]` float32.

    Returns dS at chunk *ends* (row = chunk, or, without `dfinal`, chunk - n: a sequence's last chunk has none), that of the
    states before `[N, H, M, K, V]` float32 (None without `has_state`), and, if wanted, exp(G_end) d exp(G_end) `[chunks, H]`.
    """
    (_, groups, key_dim), (_, heads, value_dim) = q.shape, do.shape
    slots = weight.shape[1]
    has_dfinal = dfinal is not None
    adjoint = StateRows(
        pieces.chunks - (0 if has_dfinal else pieces.sequences), heads, slots, key_dim, value_dim, do
    )  # fmt: skip
    if dfinal is not None:
        adjoint.put(pieces.first_chunk[1:].long() - 1, dfinal)
    dstate = None
    if has_state:
        shape = (pieces.sequences, heads, slots, key_dim, value_dim)
        dstate = torch.zeros(shape, dtype=torch.float32, device=do.device)
    blocks = blocks_of(key_dim, value_dim, tiles)
    parts = torch.zeros(blocks, slots, pieces.chunks, heads, dtype=torch.float32, device=do.device)
    for c in reversed(range(0 if has_state else 1, pieces.most_chunks)):
        states_adjoint_kernel[(pieces.with_more_than(c) * heads, triton.cdiv(slots, 2), blocks)](
            q, do, weight, total, kept.high, kept.low, adjoint.high, adjoint.low,
            adjoint.high if dstate is None else dstate, parts,
            tables.final_slot, tables.used, pieces.cu, pieces.first_chunk, pieces.by_length, pieces.tokens,
            pieces.chunks, c, scale, H=heads, G=groups, K=key_dim, V=value_dim, M=slots, TILE=pieces.tile, LONG=pieces.long,
            BK=tiles.block_k, BV=tiles.block_v, HAS_STATE=has_state, HAS_DFINAL=has_dfinal, WANT_CARRY=want_carry,
            SPLIT=kept.split, PRECISION="ieee", num_warps=tiles.warps, num_stages=1,
        )  # fmt: skip
    return adjoint, dstate, parts.sum((0, 1))


@triton.jit(do_not_specialize=["c"])
def states_adjoint_kernel(
    q_ptr, do_ptr, weight_ptr, total_ptr, high_ptr, low_ptr, dhigh_ptr, dlow_ptr, dstate_ptr, parts_ptr,
    final_slot_ptr, used_ptr, cu_ptr, first_chunk_ptr, by_length_ptr, tokens, all_chunks, c, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr,
    LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DFINAL: tl.constexpr,
    WANT_CARRY: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dS_i = sum_t (w[i, t] Qe_t)^T do_t + exp(G_end) dS_{final_slot[i]}(next), over chunk c of every sequence; two slots in a
    program, which share what is loaded"""
    n = tl.load(by_length_ptr + tl.program_id(0) // H)
    h = (tl.program_id(0) % H).to(tl.int64)
    i = 2 * tl.program_id(1)
    part = tl.program_id(2)
    first_chunk = tl.load(first_chunk_ptr + n)
    chunks = tl.load(first_chunk_ptr + n + 1) - first_chunk
    if c < chunks:
        chunk = first_chunk + c
        used = tl.load(used_ptr + chunk * H + h)
        if i < used:
            first = tl.load(cu_ptr + n) + c * LONG
            last = tl.minimum(tl.load(cu_ptr + n + 1), first + LONG)
            row_k, row_v = block_of(part, K, V, BK, BV)
            block = row_k[:, None] * V + row_v[None, :]
            inside = (row_k < K)[:, None] & (row_v < V)[None, :]
            acc, acc_older = reads_adjoint(
                q_ptr, do_ptr, weight_ptr, total_ptr, tokens, h, i, used, first, last, row_k, row_v, scale,
                H, G, K, V, M, TILE, PRECISION,
            )  # fmt: skip
            if HAS_DFINAL or c + 1 < chunks:
                acc = carried_adjoint(
                    acc, total_ptr, high_ptr, low_ptr, dhigh_ptr, dlow_ptr, parts_ptr, final_slot_ptr, tokens,
                    all_chunks, chunk, n, h, i, last, part, block, inside, H, K, V, M, HAS_STATE, HAS_DFINAL, WANT_CARRY,
                    SPLIT,
                )  # fmt: skip
                if i + 1 < used:
                    acc_older = carried_adjoint(
                        acc_older, total_ptr, high_ptr, low_ptr, dhigh_ptr, dlow_ptr, parts_ptr, final_slot_ptr, tokens,
                        all_chunks, chunk, n, h, i + 1, last, part, block, inside, H, K, V, M, HAS_STATE, HAS_DFINAL,
                        WANT_CARRY, SPLIT,
                    )  # fmt: skip
            older = inside & (i + 1 < used)
            if c > 0:
                at = slot_offset(end_row(chunk - 1, n, HAS_DFINAL), h, i, H, M, K, V) + block
                store_state(dhigh_ptr, dlow_ptr, at, acc, inside, SPLIT)
                store_state(dhigh_ptr, dlow_ptr, at + K * V, acc_older, older, SPLIT)
            elif HAS_STATE:
                at = slot_offset(n, h, i, H, M, K, V) + block
                tl.store(dstate_ptr + at, acc, mask=inside)
                tl.store(dstate_ptr + at + K * V, acc_older, mask=older)


@triton.jit
def reads_adjoint(
    q_ptr, do_ptr, weight_ptr, total_ptr, tokens, h, i, used, first, last, row_k, row_v, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`sum_t (w[i, t] Qe_t)^T do_t` over the tokens `first..last` of a chunk, block `row_k` x `row_v`, for slots i and i + 1."""
    dtype = do_ptr.dtype.element_ty
    acc = tl.zeros((row_k.shape[0], row_v.shape[0]), tl.float32)
    acc_older = tl.zeros((row_k.shape[0], row_v.shape[0]), tl.float32)
    row = tl.arange(0, TILE)
    for start in range(0, (last - first).to(tl.int32), TILE):
        t = first + start
        rows = (last - t).to(tl.int32)
        factor = tl.exp(tl.load(total_ptr + h * tokens + t + row, mask=row < rows, other=float("-inf"))) * scale
        weight = tl.load(weight_ptr + (h * M + i) * tokens + t + row, mask=row < rows, other=0.0)
        older = tl.load(weight_ptr + (h * M + i + 1) * tokens + t + row, mask=(row < rows) & (i + 1 < used), other=0.0)
        q = load_tile_transposed(q_ptr + h // (H // G) * K, t, rows, row_k, G * K, K, TILE)
        do = load_tile(do_ptr + h * V, t, rows, row_v, H * V, V, TILE)
        query = q.to(tl.float32) * factor[None, :]
        left = (query * weight[None, :]).to(dtype)
        acc += tl.dot(left, do, input_precision=PRECISION)  # [BK, TILE] @ [TILE, BV] -> [BK, BV]
        left = (query * older[None, :]).to(dtype)
        acc_older += tl.dot(left, do, input_precision=PRECISION)
    return acc, acc_older


@triton.jit
def carried_adjoint(
    acc, total_ptr, high_ptr, low_ptr, dhigh_ptr, dlow_ptr, parts_ptr, final_slot_ptr, tokens, all_chunks,
    chunk, n, h, i, last, part, block, inside,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_DFINAL: tl.constexpr, WANT_CARRY: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """acc + `exp(G_end) dS_{final_slot[i]}(next)`, and that times the state before, summed, for the gradient of exp(G_end)."""
    a = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + i).to(tl.int32)
    at = slot_offset(end_row(chunk, n, HAS_DFINAL), h, a, H, M, K, V) + block
    carry = tl.exp(tl.load(total_ptr + h * tokens + last - 1))
    dnext = carry * load_state(dhigh_ptr, dlow_ptr, at, inside, SPLIT)
    if WANT_CARRY:
        at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + block
        dcarry = tl.sum(dnext * load_state(high_ptr, low_ptr, at, inside, SPLIT))
        tl.store(parts_ptr + ((part * M + i).to(tl.int64) * all_chunks + chunk) * H + h, dcarry)
    return acc + dnext
