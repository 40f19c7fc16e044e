# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The states at the start of every chunk for the delta rule, the adjoint of that pass, and the gradient of the carry.

    S_a(next) = P sum_{i: final_slot[i] = a} S_i + sum_{j: final_token[j] = a} U_j v_j^T,   P = carry I - R
    dS_i      = E_i + P^T dS_{final_slot[i]}(next),       dP = sum_i dS_{final_slot[i]}(next) S_i^T

R (`removal`) is kept apart from the identity: rounding it to 16 bits is harmless, rounding `1 - small` would not be.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles, exact_products, key_blocks
from dla_kernels.reader.fused.pieces import Pieces, locate
from dla_kernels.reader.fused.states import range_of_age
from dla_kernels.reader.fused.states_layout import (
    StateRows,
    end_row,
    load_state,
    slot_offset,
    start_row,
    store_state,
)

COLUMN_BYTES = 12 << 10
"""Most bytes of the columns of a state that a program takes, in the type of products: registers hold them beside R and
the sums. At K = 192, 32 columns of 16-bit numbers or 16 of float32 fill it; as many at K = 256 spilled up to 7.8 KB per
thread."""


def advance_states_delta(
    u: Tensor, v: Tensor, carry: Tensor, removal: Tensor, state: Tensor | None, tables: AgeTables, pieces: Pieces,
    tiles: Tiles, *, slots: int, return_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """u = U `[tokens, H, K]`, carry `[chunks, H]` float32, removal = R `[chunks, H, K, K]`; the rest as advance_states."""
    (_, heads, key_dim), value_dim = u.shape, v.shape[-1]
    rows = pieces.chunks - (pieces.sequences if state is None else 0)
    kept = StateRows(rows, heads, slots, key_dim, value_dim, v)
    final = None
    if return_state:
        shape = (pieces.sequences, heads, slots, key_dim, value_dim)
        final = torch.zeros(shape, dtype=torch.float32, device=v.device)
    if state is not None:
        kept.put(pieces.first_chunk[:-1].long(), state)
    sizes = _whole_columns(kept, tiles)
    blocks = triton.cdiv(value_dim, sizes["BV"])
    for c, sequences in chunks_forward(pieces, return_state=return_state):
        advance_states_delta_kernel[(sequences * heads, slots, blocks)](
            u, v, carry, removal, kept.high, kept.low, kept.high if final is None else final,
            tables.final_slot, tables.token_ends, tables.used, tables.used_end, pieces.cu, pieces.first_chunk,
            pieces.by_length, c, MP=padded_slots(slots), LONG=pieces.long, BJ=pieces.tile, HAS_STATE=state is not None,
            HAS_FINAL=return_state, num_warps=tiles.warps, **sizes,
        )  # fmt: skip
    return kept.high, final


def carry_adjoint_delta(
    carry: Tensor, removal: Tensor, adjoint: StateRows, dfinal: Tensor | None, dstate: Tensor | None,
    tables: AgeTables, pieces: Pieces, tiles: Tiles,
) -> None:  # fmt: skip
    """Turns the rows of `adjoint` (and `dstate`) from E into dS, in place."""
    _, heads, slots, _, value_dim = adjoint.high.shape
    has_state, has_dfinal = dstate is not None, dfinal is not None
    if dfinal is not None:
        adjoint.put(pieces.first_chunk[1:].long() - 1, dfinal)
    sizes = _whole_columns(adjoint, tiles)
    turned = removal.transpose(-1, -2).contiguous()  # loading R^T from R takes more registers than there are
    blocks = triton.cdiv(value_dim, sizes["BV"])
    for c, sequences in chunks_backward(pieces, has_state=has_state, has_dfinal=has_dfinal):
        carry_adjoint_delta_kernel[(sequences * heads, slots, blocks)](
            carry, turned, adjoint.high, adjoint.low, adjoint.high if dstate is None else dstate,
            tables.final_slot, tables.used, pieces.first_chunk, pieces.by_length, c, HAS_STATE=has_state, HAS_DFINAL=has_dfinal,
            num_warps=tiles.warps, **sizes,
        )  # fmt: skip


def _whole_columns(rows: StateRows, tiles: Tiles) -> dict[str, Any]:
    """A program takes all of K, so that every state is read once, and a block of V that is narrow enough for its
    registers."""
    _, heads, slots, key_dim, value_dim = rows.high.shape
    first, second = key_blocks(key_dim)
    fitting = COLUMN_BYTES // ((first + second) * rows.high.element_size())
    columns = min(tiles.block_v, 32 if rows.split else 16, 1 << (fitting.bit_length() - 1))
    return {
        "H": heads, "M": slots, "K": key_dim, "V": value_dim, "B1": first, "B2": second,
        "BV": columns, "SPLIT": rows.split, "PRECISION": exact_products(rows.high.dtype), "num_stages": 1,
    }  # fmt: skip


def carry_gradient(
    kept: Tensor, adjoint: Tensor, tables: AgeTables, pieces: Pieces, tiles: Tiles,
    *, has_state: bool, has_dfinal: bool,
) -> Tensor:  # fmt: skip
    """dP `[chunks, H, K, K]` float32."""
    _, heads, slots, key_dim, value_dim = kept.shape
    dcarry = torch.zeros(pieces.chunks, heads, key_dim, key_dim, dtype=torch.float32, device=kept.device)
    blocks = triton.cdiv(key_dim, tiles.block_k)
    carry_gradient_kernel[(pieces.chunks, heads, blocks * blocks)](
        kept, adjoint, dcarry, tables.final_slot, tables.used,
        pieces.chunk_sequence, pieces.chunk_number, pieces.cu,
        H=heads, K=key_dim, V=value_dim, M=slots, LONG=pieces.long, BK=tiles.block_k, BV=tiles.block_v,
        HAS_STATE=has_state, HAS_DFINAL=has_dfinal, PRECISION="ieee", num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dcarry


def chunks_forward(pieces: Pieces, *, return_state: bool) -> list[tuple[int, int]]:
    """The numbers of chunks whose end is needed, and how many sequences have such a chunk: the longest ones. One long
    document among many short ones must not launch programs for all of them."""
    after = 0 if return_state else 1
    return [(c, pieces.with_more_than(c + after)) for c in range(pieces.most_chunks - after)]


def chunks_backward(pieces: Pieces, *, has_state: bool, has_dfinal: bool) -> list[tuple[int, int]]:
    """The same, last chunk first, for chunks whose end may have an adjoint and whose start may have states."""
    chunks = chunks_forward(pieces, return_state=has_dfinal)
    return [(c, sequences) for c, sequences in reversed(chunks) if has_state or c > 0]


@triton.jit
def chunk_ranges(
    final_slot_ptr, token_ends_ptr, used_ptr, used_end_ptr, chunk, is_last, n, h, a, H: tl.constexpr, M: tl.constexpr,
    MP: tl.constexpr,
):  # fmt: skip
    """What becomes the slot of age a at a chunk's end: old slots `i0..i1` and tokens `j0..j1` of the chunk; and whether
    there is such a slot. Ages are monotone: older slots come later."""
    slot = tl.arange(0, MP)
    used = tl.load(used_ptr + chunk * H + h)
    if is_last:
        used_next = tl.load(used_end_ptr + n * H + h)
    else:
        used_next = tl.load(used_ptr + (chunk + 1) * H + h)
    slot_to = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + slot, mask=slot < used, other=255)
    i0, i1 = tl.sum((slot_to < a).to(tl.int32)), tl.sum((slot_to <= a).to(tl.int32))
    j0, j1 = range_of_age(token_ends_ptr, chunk, h, a, H, M)
    return i0, i1, j0, j1, a < used_next


@triton.jit
def slots_sum(
    high_ptr, low_ptr, base, begin, end, block, inside,
    K: tl.constexpr, V: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A block of the sum of slots `begin..end`, which become one slot."""
    acc = tl.zeros(block.shape, tl.float32)
    for i in range(begin, end):
        acc += load_state(high_ptr, low_ptr, base + i * (K * V) + block, inside, SPLIT)
    return acc


@triton.jit
def column_block(START: tl.constexpr, B: tl.constexpr, row_v, K: tl.constexpr, V: tl.constexpr):
    """Rows START.. of a block of columns of a state `[B, BV]`: their offsets, and whether they exist."""
    row = START + tl.arange(0, B)
    return row[:, None] * V + row_v[None, :], (row < K)[:, None] & (row_v < V)[None, :]


@triton.jit
def removal_block(
    removal_ptr, FIRST: tl.constexpr, ROWS: tl.constexpr, START: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr
):
    """A block of R, `[ROWS, COLUMNS]`."""
    row = (FIRST + tl.arange(0, ROWS))[:, None]
    column = (START + tl.arange(0, COLUMNS))[None, :]
    return tl.load(removal_ptr + row * K + column, mask=(row < K) & (column < K), other=0.0)


@triton.jit
def removed_rows(
    removal_ptr, state1, state2, FIRST: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr, B1: tl.constexpr,
    B2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows FIRST.. of R S, `[ROWS, BV]`, with S in its two blocks of rows."""
    block = removal_block(removal_ptr, FIRST, ROWS, 0, B1, K)
    out = tl.dot(block, state1, input_precision=PRECISION)  # [ROWS, B1] @ [B1, BV] -> [ROWS, BV]
    if B2 > 0:
        block = removal_block(removal_ptr, FIRST, ROWS, B1, B2, K)
        out += tl.dot(block, state2, input_precision=PRECISION)
    return out


@triton.jit
def written_rows(
    acc, u_ptr, v_ptr, first, begin, end, h, row_v, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, START: tl.constexpr,
    B: tl.constexpr, BJ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + rows START.. of the sum of `U_j v_j^T` over the chunk's tokens `begin..end`."""
    row = START + tl.arange(0, B)
    for at_j in range(begin, end, BJ):
        token = at_j + tl.arange(0, BJ)
        mask = token < end
        j = first + token
        u = tl.load(u_ptr + (j * H + h)[None, :] * K + row[:, None], mask=mask[None, :] & (row < K)[:, None], other=0.0)
        v = tl.load(
            v_ptr + (j * H + h)[:, None] * V + row_v[None, :], mask=mask[:, None] & (row_v < V)[None, :], other=0.0
        )
        acc += tl.dot(u, v, input_precision=PRECISION)  # [B, BJ] @ [BJ, BV] -> [B, BV]
    return acc


@triton.jit(do_not_specialize=["c"])
def advance_states_delta_kernel(
    u_ptr, v_ptr, carry_ptr, removal_ptr, high_ptr, low_ptr, final_ptr,
    final_slot_ptr, token_ends_ptr, used_ptr, used_end_ptr, cu_ptr, first_chunk_ptr, by_length_ptr, c,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, LONG: tl.constexpr,
    BJ: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_FINAL: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S_a(next) = (carry - R) sum of S_i + sum of U_j v_j^T, over chunk c of every sequence"""
    n = tl.load(by_length_ptr + tl.program_id(0) // H)
    h = (tl.program_id(0) % H).to(tl.int64)
    a = tl.program_id(1)
    first_chunk = tl.load(first_chunk_ptr + n)
    chunks = tl.load(first_chunk_ptr + n + 1) - first_chunk
    if c < chunks - (0 if HAS_FINAL else 1):
        chunk = first_chunk + c
        first = tl.load(cu_ptr + n) + c * LONG
        i0, i1, j0, j1, is_used = chunk_ranges(
            final_slot_ptr, token_ends_ptr, used_ptr, used_end_ptr, chunk, c + 1 == chunks, n, h, a, H, M, MP,
        )  # fmt: skip
        if is_used:
            dtype = v_ptr.dtype.element_ty
            row_v = tl.program_id(2) * BV + tl.arange(0, BV)
            removal = removal_ptr + (chunk.to(tl.int64) * H + h) * (K * K)
            base = slot_offset(start_row(chunk, n, HAS_STATE), h, 0, H, M, K, V)
            carry = tl.load(carry_ptr + chunk * H + h)
            block1, inside1 = column_block(0, B1, row_v, K, V)
            acc1 = slots_sum(high_ptr, low_ptr, base, i0, i1, block1, inside1, K, V, SPLIT)
            state1 = acc1.to(dtype)
            state2 = state1
            acc1 = carry * acc1
            if B2 > 0:
                block2, inside2 = column_block(B1, B2, row_v, K, V)
                acc2 = slots_sum(high_ptr, low_ptr, base, i0, i1, block2, inside2, K, V, SPLIT)
                state2 = acc2.to(dtype)
                acc2 = carry * acc2
            if i1 > i0:
                acc1 -= removed_rows(removal, state1, state2, 0, B1, K, B1, B2, PRECISION)
                if B2 > 0:
                    acc2 -= removed_rows(removal, state1, state2, B1, B2, K, B1, B2, PRECISION)
            acc1 = written_rows(acc1, u_ptr, v_ptr, first, j0, j1, h, row_v, H, K, V, 0, B1, BJ, PRECISION)
            if B2 > 0:
                acc2 = written_rows(acc2, u_ptr, v_ptr, first, j0, j1, h, row_v, H, K, V, B1, B2, BJ, PRECISION)
            if c + 1 < chunks:
                at = slot_offset(start_row(chunk + 1, n, HAS_STATE), h, a, H, M, K, V)
                store_state(high_ptr, low_ptr, at + block1, acc1, inside1, SPLIT)
                if B2 > 0:
                    store_state(high_ptr, low_ptr, at + block2, acc2, inside2, SPLIT)
            elif HAS_FINAL:
                at = slot_offset(n, h, a, H, M, K, V)
                tl.store(final_ptr + at + block1, acc1, mask=inside1)
                if B2 > 0:
                    tl.store(final_ptr + at + block2, acc2, mask=inside2)


@triton.jit
def add_to_adjoint(
    dhigh_ptr, dlow_ptr, dstate_ptr, chunk, n, c, h, i, acc, block, inside, H: tl.constexpr, M: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DFINAL: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Add acc to slot i at the start of a chunk, which holds E."""
    if c > 0:
        at = slot_offset(end_row(chunk - 1, n, HAS_DFINAL), h, i, H, M, K, V) + block
        acc += load_state(dhigh_ptr, dlow_ptr, at, inside, SPLIT)
        store_state(dhigh_ptr, dlow_ptr, at, acc, inside, SPLIT)
    elif HAS_STATE:
        at = slot_offset(n, h, i, H, M, K, V) + block
        tl.store(dstate_ptr + at, tl.load(dstate_ptr + at, mask=inside, other=0.0) + acc, mask=inside)


@triton.jit(do_not_specialize=["c"])
def carry_adjoint_delta_kernel(
    carry_ptr, turned_ptr, dhigh_ptr, dlow_ptr, dstate_ptr, final_slot_ptr, used_ptr, first_chunk_ptr, by_length_ptr, c,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, B1: tl.constexpr, B2: tl.constexpr,
    BV: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DFINAL: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dS_i = E_i + (carry - R)^T dS_{final_slot[i]}(next), over chunk c of every sequence"""
    n = tl.load(by_length_ptr + tl.program_id(0) // H)
    h = (tl.program_id(0) % H).to(tl.int64)
    i = tl.program_id(1)
    first_chunk = tl.load(first_chunk_ptr + n)
    chunks = tl.load(first_chunk_ptr + n + 1) - first_chunk
    if c < chunks - (0 if HAS_DFINAL else 1):
        chunk = first_chunk + c
        if i < tl.load(used_ptr + chunk * H + h):
            dtype = dhigh_ptr.dtype.element_ty
            row_v = tl.program_id(2) * BV + tl.arange(0, BV)
            turned = turned_ptr + (chunk.to(tl.int64) * H + h) * (K * K)
            a = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + i)
            base = slot_offset(end_row(chunk, n, HAS_DFINAL), h, a, H, M, K, V)
            carry = tl.load(carry_ptr + chunk * H + h)
            block1, inside1 = column_block(0, B1, row_v, K, V)
            acc1 = load_state(dhigh_ptr, dlow_ptr, base + block1, inside1, SPLIT)
            next1 = acc1.to(dtype)
            next2 = next1
            if B2 > 0:
                block2, inside2 = column_block(B1, B2, row_v, K, V)
                acc2 = load_state(dhigh_ptr, dlow_ptr, base + block2, inside2, SPLIT)
                next2 = acc2.to(dtype)
            acc1 = carry * acc1 - removed_rows(turned, next1, next2, 0, B1, K, B1, B2, PRECISION)
            add_to_adjoint(
                dhigh_ptr, dlow_ptr, dstate_ptr, chunk, n, c, h, i, acc1, block1, inside1, H, M, K, V,
                HAS_STATE, HAS_DFINAL, SPLIT,
            )  # fmt: skip
            if B2 > 0:
                acc2 = carry * acc2 - removed_rows(turned, next1, next2, B1, B2, K, B1, B2, PRECISION)
                add_to_adjoint(
                    dhigh_ptr, dlow_ptr, dstate_ptr, chunk, n, c, h, i, acc2, block2, inside2, H, M, K, V,
                    HAS_STATE, HAS_DFINAL, SPLIT,
                )  # fmt: skip


@triton.jit
def carry_gradient_kernel(
    high_ptr, dhigh_ptr, dcarry_ptr, final_slot_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DFINAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dP = sum_i dS_{final_slot[i]}(next) S_i^T"""
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    chunk = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    n, _, _, last = locate(chunk, sequence_ptr, number_ptr, cu_ptr, LONG)
    has_end = last < tl.load(cu_ptr + n + 1)
    if HAS_DFINAL:
        has_end = last > 0
    if has_end:
        row_k = (tl.program_id(2) // BLOCKS) * BK + tl.arange(0, BK)
        row_l = (tl.program_id(2) % BLOCKS) * BK + tl.arange(0, BK)
        acc = tl.zeros((BK, BK), tl.float32)
        for i in range(0, tl.load(used_ptr + chunk * H + h)):
            a = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + i)
            at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V)
            dat = slot_offset(end_row(chunk, n, HAS_DFINAL), h, a, H, M, K, V)
            for start in range(0, V, BV):
                row_v = start + tl.arange(0, BV)
                in_v = row_v < V
                dnext = tl.load(
                    dhigh_ptr + dat + row_k[:, None] * V + row_v[None, :],
                    mask=(row_k < K)[:, None] & in_v[None, :],
                    other=0.0,
                )
                state = tl.load(
                    high_ptr + at + row_l[None, :] * V + row_v[:, None],
                    mask=(row_l < K)[None, :] & in_v[:, None],
                    other=0.0,
                )
                acc += tl.dot(dnext, state, input_precision=PRECISION)  # [BK, BV] @ [BV, BK] -> [BK, BK]
        at = (chunk.to(tl.int64) * H + h) * (K * K) + row_k[:, None] * K + row_l[None, :]
        tl.store(dcarry_ptr + at, acc, mask=(row_k < K)[:, None] & (row_l < K)[None, :])
