# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The states at the start of every chunk, for plain decay, and the adjoint of that pass.

    S_a(next) = exp(G_end) sum_{i: final_slot[i] = a} S_i + sum_{j: final_token[j] = a} exp(G_end - G_j) k_j v_j^T
    dS_i      = E_i + exp(G_end) dS_{final_slot[i]}(next),          E_i = sum_t (w[i, t] Qe_t)^T do_t

Ages are monotone, so the old slots and the tokens that make up a new slot are two ranges: a chunk costs as many products
as it has blocks of tokens and slots touched. One program owns a block of K x V of all slots and goes through the chunks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.states_layout import StateRows, load_state, slot_offset, store_state


def advance_states(
    k: Tensor, v: Tensor, total: Tensor, state: Tensor | None, tables: AgeTables, pieces: Pieces, tiles: Tiles,
    *, slots: int, return_state: bool,
) -> tuple[StateRows, Tensor | None]:  # fmt: skip
    """k `[tokens, G, K]`, v `[tokens, H, V]`, total = G `[H, tokens]`, state `[N, H, M, K, V]` float32 by age or None.

    Returns the rows of states at chunk starts (row = chunk, or, without a state before, chunk - n - 1: a sequence's first
    chunk has none) and, if asked, the states at the ends `[N, H, M, K, V]` float32.
    """
    (_, groups, key_dim), (_, heads, value_dim) = k.shape, v.shape
    rows = pieces.chunks - (pieces.sequences if state is None else 0)
    kept = StateRows(rows, heads, slots, key_dim, value_dim, v)
    final = None
    if return_state:
        shape = (pieces.sequences, heads, slots, key_dim, value_dim)
        final = torch.zeros(shape, dtype=torch.float32, device=v.device)
    grid = (
        pieces.sequences * heads,
        triton.cdiv(key_dim, tiles.block_k),
        triton.cdiv(value_dim, tiles.block_v),
    )
    advance_states_kernel[grid](
        k, v, total, kept.high if state is None else state, kept.high, kept.low, kept.high if final is None else final,
        tables.final_slot, tables.final_token, tables.used, tables.used_end, pieces.cu, pieces.first_chunk,
        pieces.tokens, H=heads, G=groups, K=key_dim, V=value_dim, M=slots, MP=padded_slots(slots), LONG=pieces.long,
        BJ=pieces.tile, BK=tiles.block_k, BV=tiles.block_v, HAS_STATE=state is not None, HAS_FINAL=return_state,
        SPLIT=kept.split, PRECISION="ieee", num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return kept, final


def carry_adjoint(
    total: Tensor, kept: StateRows, adjoint: StateRows, dfinal: Tensor | None, dstate: Tensor | None,
    tables: AgeTables, pieces: Pieces, tiles: Tiles, *, want_carry: bool,
) -> Tensor:  # fmt: skip
    """Turns the rows of `adjoint` from E into dS, in place, and returns exp(G_end) d exp(G_end) `[chunks, H]`.

    Rows of `adjoint` hold the adjoint of the states at chunk *ends*: row = chunk, or, without `dfinal`, chunk - n (a
    sequence's last chunk has none). `dstate` `[N, H, M, K, V]` float32 holds E of first chunks and becomes the adjoint of
    the state before; None where there is none.
    """
    _, heads, slots, key_dim, value_dim = adjoint.high.shape
    blocks = triton.cdiv(key_dim, tiles.block_k), triton.cdiv(value_dim, tiles.block_v)
    parts = torch.zeros(*blocks, pieces.chunks, heads, dtype=torch.float32, device=total.device)
    carry_adjoint_kernel[(pieces.sequences * heads, *blocks)](
        total, kept.high, kept.low, adjoint.high, adjoint.low, adjoint.high if dfinal is None else dfinal,
        adjoint.high if dstate is None else dstate, parts, tables.final_slot, tables.used, tables.used_end, pieces.cu,
        pieces.first_chunk, pieces.tokens, pieces.chunks, H=heads, K=key_dim, V=value_dim, M=slots, LONG=pieces.long,
        BK=tiles.block_k, BV=tiles.block_v, HAS_STATE=dstate is not None, HAS_DFINAL=dfinal is not None,
        WANT_CARRY=want_carry, SPLIT=kept.split, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return parts.sum((0, 1))


@triton.jit
def start_row(chunk, n, HAS_STATE: tl.constexpr):
    """The row of the states at the start of a chunk (with `HAS_STATE`, also of a sequence's first)."""
    if HAS_STATE:
        return chunk
    else:
        return chunk - n - 1


@triton.jit
def end_row(chunk, n, HAS_DFINAL: tl.constexpr):
    """The row of the adjoint at the end of a chunk (with `HAS_DFINAL`, also of a sequence's last)."""
    if HAS_DFINAL:
        return chunk
    else:
        return chunk - n


@triton.jit
def written(
    acc, k_ptr, v_ptr, total_ptr, total_end, tokens, h, first, begin, end, row_k, row_v,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BJ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + sum over the chunk's tokens `begin..end` of `exp(G_end - G_j) k_j v_j^T`, block `row_k` x `row_v`."""
    dtype = v_ptr.dtype.element_ty
    g = h // (H // G)
    for start in range(begin, end, BJ):
        index = start + tl.arange(0, BJ)
        mask = index < end
        j = first + index
        factor = tl.exp(total_end - tl.load(total_ptr + h * tokens + j, mask=mask, other=float("inf")))
        k = tl.load(
            k_ptr + (j * G + g)[None, :] * K + row_k[:, None], mask=mask[None, :] & (row_k < K)[:, None], other=0.0
        )
        v = tl.load(
            v_ptr + (j * H + h)[:, None] * V + row_v[None, :], mask=mask[:, None] & (row_v < V)[None, :], other=0.0
        )
        key = (k.to(tl.float32) * factor[None, :]).to(dtype)
        acc += tl.dot(key, v, input_precision=PRECISION)  # [BK, BJ] @ [BJ, BV] -> [BK, BV]
    return acc


@triton.jit
def advance_states_kernel(
    k_ptr, v_ptr, total_ptr, state_ptr, high_ptr, low_ptr, final_ptr,
    final_slot_ptr, final_token_ptr, used_ptr, used_end_ptr, cu_ptr, first_chunk_ptr, tokens,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    LONG: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_FINAL: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S_a(next) = exp(G_end) sum of S_i + sum of exp(G_end - G_j) k_j v_j^T"""
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    row_k = tl.program_id(1) * BK + tl.arange(0, BK)
    row_v = tl.program_id(2) * BV + tl.arange(0, BV)
    block = row_k[:, None] * V + row_v[None, :]
    inside = (row_k < K)[:, None] & (row_v < V)[None, :]
    slot = tl.arange(0, MP)
    index = tl.arange(0, LONG)
    begin = tl.load(cu_ptr + n)
    stop = tl.load(cu_ptr + n + 1)
    first_chunk = tl.load(first_chunk_ptr + n)
    chunks = tl.load(first_chunk_ptr + n + 1) - first_chunk
    if HAS_STATE:
        for i in range(0, M):
            state = tl.load(state_ptr + slot_offset(n, h, i, H, M, K, V) + block, mask=inside, other=0.0)
            at = slot_offset(start_row(first_chunk, n, HAS_STATE), h, i, H, M, K, V) + block
            store_state(high_ptr, low_ptr, at, state, inside, SPLIT)
        tl.debug_barrier()
    steps = chunks if HAS_FINAL else chunks - 1
    for c in range(0, steps):
        chunk = first_chunk + c
        first = begin + c * LONG
        length = tl.minimum(stop - first, LONG).to(tl.int32)
        used = tl.load(used_ptr + chunk * H + h)
        used_next = tl.load(used_end_ptr + n * H + h)
        if c + 1 < chunks:
            used_next = tl.load(used_ptr + (chunk + 1) * H + h)
        slot_to = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + slot, mask=slot < used, other=255).to(
            tl.int32
        )
        token_to = tl.load(final_token_ptr + h * tokens + first + index, mask=index < length, other=0).to(tl.int32)
        token_to = tl.where(index < length, token_to, -1)
        total_end = tl.load(total_ptr + h * tokens + first + length - 1)
        for a in range(0, used_next):
            # older tokens have higher ages, older slots come later
            acc = tl.zeros((BK, BV), tl.float32)
            for i in range(tl.sum((slot_to < a).to(tl.int32)), tl.sum((slot_to <= a).to(tl.int32))):
                at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + block
                acc += load_state(high_ptr, low_ptr, at, inside, SPLIT)
            acc *= tl.exp(total_end)
            acc = written(
                acc, k_ptr, v_ptr, total_ptr, total_end, tokens, h, first, tl.sum((token_to > a).to(tl.int32)),
                tl.sum((token_to >= a).to(tl.int32)), row_k, row_v, H, G, K, V, BJ, PRECISION,
            )  # fmt: skip
            if c + 1 < chunks:
                at = slot_offset(start_row(chunk + 1, n, HAS_STATE), h, a, H, M, K, V) + block
                store_state(high_ptr, low_ptr, at, acc, inside, SPLIT)
            elif HAS_FINAL:
                tl.store(final_ptr + slot_offset(n, h, a, H, M, K, V) + block, acc, mask=inside)
        tl.debug_barrier()


@triton.jit
def carry_adjoint_kernel(
    total_ptr, high_ptr, low_ptr, dhigh_ptr, dlow_ptr, dfinal_ptr, dstate_ptr, parts_ptr,
    final_slot_ptr, used_ptr, used_end_ptr, cu_ptr, first_chunk_ptr, tokens, all_chunks,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, LONG: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DFINAL: tl.constexpr, WANT_CARRY: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """dS_i = E_i + exp(G_end) dS_{final_slot[i]}(next), from the last chunk to the first"""
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    row_k = tl.program_id(1) * BK + tl.arange(0, BK)
    row_v = tl.program_id(2) * BV + tl.arange(0, BV)
    block = row_k[:, None] * V + row_v[None, :]
    inside = (row_k < K)[:, None] & (row_v < V)[None, :]
    begin = tl.load(cu_ptr + n)
    stop = tl.load(cu_ptr + n + 1)
    first_chunk = tl.load(first_chunk_ptr + n)
    chunks = tl.load(first_chunk_ptr + n + 1) - first_chunk
    if HAS_DFINAL:
        for a in range(0, tl.load(used_end_ptr + n * H + h)):
            dstate = tl.load(dfinal_ptr + slot_offset(n, h, a, H, M, K, V) + block, mask=inside, other=0.0)
            at = slot_offset(end_row(first_chunk + chunks - 1, n, HAS_DFINAL), h, a, H, M, K, V) + block
            store_state(dhigh_ptr, dlow_ptr, at, dstate, inside, SPLIT)
        tl.debug_barrier()
    # chunks whose end has an adjoint and whose start has states
    steps = chunks if HAS_DFINAL else chunks - 1
    least = 0 if HAS_STATE else 1
    for back in range(0, steps - least):
        c = steps - 1 - back
        chunk = first_chunk + c
        first = begin + c * LONG
        last = tl.minimum(stop, first + LONG)
        carry = tl.exp(tl.load(total_ptr + h * tokens + last - 1))
        dcarry = tl.zeros((BK, BV), tl.float32)
        for i in range(0, tl.load(used_ptr + chunk * H + h)):
            a = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + i).to(tl.int32)
            at = slot_offset(end_row(chunk, n, HAS_DFINAL), h, a, H, M, K, V) + block
            dnext = load_state(dhigh_ptr, dlow_ptr, at, inside, SPLIT)
            if WANT_CARRY:
                at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + block
                dcarry += dnext * load_state(high_ptr, low_ptr, at, inside, SPLIT)
            if c > 0:
                at = slot_offset(end_row(chunk - 1, n, HAS_DFINAL), h, i, H, M, K, V) + block
                dstate = load_state(dhigh_ptr, dlow_ptr, at, inside, SPLIT) + carry * dnext
                store_state(dhigh_ptr, dlow_ptr, at, dstate, inside, SPLIT)
            elif HAS_STATE:
                at = slot_offset(n, h, i, H, M, K, V) + block
                tl.store(dstate_ptr + at, tl.load(dstate_ptr + at, mask=inside, other=0.0) + carry * dnext, mask=inside)
        if WANT_CARRY:
            part = (tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)) * all_chunks + chunk
            tl.store(parts_ptr + part * H + h, carry * tl.sum(dcarry))
        tl.debug_barrier()
