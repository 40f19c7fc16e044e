# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Plain decay: carries what chunks add to the states from chunk to chunk, and likewise for their adjoint.

    S_a(next) = exp(G_end) sum_{i: final_slot[i] = a} S_i + W_a        dS_i = exp(G_end) dS_{final_slot[i]}(next) + E_i

Nothing here mixes the numbers of a state: a program takes a few of them, for all M slots, and keeps these in registers
in float32 while it goes through the sequence. W and E are stored where the sums belong (states.py, slots_adjoint.py),
and are replaced. Slots are merged by a product with a 0/1 matrix (selection.py), with at least the precision that
tensor cores have for float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.selection import select_rows
from dla_kernels.reader.fused.states_layout import (
    StateRows,
    end_row,
    load_state,
    slot_offset,
    start_row,
)

NUMBERS = 2048
"""Numbers of states that a program keeps: 16 per thread, which holds several copies of them."""
AHEAD = 3
"""While a chunk is processed, loads for the next two are in flight. They wait in shared memory, not in registers."""


def carry_states(
    kept: StateRows, final: Tensor | None, total: Tensor, tables: AgeTables, pieces: Pieces, *, has_state: bool
) -> None:
    """Turn W into S in `kept` and `final` `[N, H, M, K, V]` float32; of `kept`, `low` is out of date afterwards.

    total = G `[H, tokens]` float32; has_state: whether the first rows of sequences hold their initial states.
    """
    sequences = pieces.with_more_than(0 if final is not None else 1)
    if sequences == 0:
        return
    blocks, sizes = _sizes(kept, pieces)
    carry_states_kernel[(sequences * sizes["H"], blocks)](
        kept.high, kept.low, kept.high if final is None else final, total, tables.final_slot, tables.used,
        tables.used_end, pieces.cu, pieces.first_chunk, pieces.by_length, pieces.tokens,
        HAS_STATE=has_state, HAS_FINAL=final is not None, **sizes,
    )  # fmt: skip


def carry_adjoint(
    adjoint: StateRows, dfinal: Tensor | None, dstate: Tensor | None, kept: Tensor | None, total: Tensor,
    tables: AgeTables, pieces: Pieces,
) -> Tensor:  # fmt: skip
    """Turn E into dS in `adjoint` and `dstate`; of `adjoint`, `low` is out of date afterwards.

    dfinal, dstate `[N, H, M, K, V]` float32 or None; total = G `[H, tokens]` float32. Returns `exp(G_end) d exp(G_end)` `[chunks, H]`
    float32, from the states at chunk starts, `kept` `[rows, H, M, K, V]`; zeros where that is None.
    """
    heads = adjoint.high.shape[1]
    has_state, has_dfinal = dstate is not None, dfinal is not None
    if dfinal is not None:
        adjoint.put(pieces.first_chunk[1:].long() - 1, dfinal)
    blocks, sizes = _sizes(adjoint, pieces)
    shape = (blocks if kept is not None else 1, pieces.chunks, heads)
    parts = torch.zeros(shape, dtype=torch.float32, device=total.device)
    sequences = pieces.with_more_than(0 if has_state else 1)
    if sequences > 0:
        carry_adjoint_kernel[(sequences * heads, blocks)](
            adjoint.high, adjoint.low, adjoint.high if dstate is None else dstate,
            adjoint.high if kept is None else kept, parts, total, tables.final_slot, tables.used, tables.used_end,
            pieces.cu, pieces.first_chunk, pieces.by_length, pieces.tokens, pieces.chunks,
            HAS_STATE=has_state, HAS_DFINAL=has_dfinal, WANT_CARRY=kept is not None, **sizes,
        )  # fmt: skip
    return parts.sum(0)


def _sizes(rows: StateRows, pieces: Pieces) -> tuple[int, dict[str, Any]]:
    """The number of programs for the numbers of a state, and the constants of both kernels."""
    _, heads, slots, key_dim, value_dim = rows.high.shape
    padded = padded_slots(slots)
    size = max(16, NUMBERS // padded)
    return -(-key_dim * value_dim // size), {
        "H": heads, "K": key_dim, "V": value_dim, "M": slots, "MP": padded, "LONG": pieces.long, "B": size,
        "SPLIT": rows.split, "PRECISION": "tf32" if torch.version.hip is None else "ieee", "num_warps": 4, "num_stages": 1, "AHEAD": AHEAD,
    }  # fmt: skip


@triton.jit
def sequence_of_program(by_length_ptr, first_chunk_ptr, cu_ptr, H: tl.constexpr):
    """A program's sequence and head; the sequence's first chunk, its number of chunks, its first token and the one
    after its last."""
    n = tl.load(by_length_ptr + tl.program_id(0) // H)
    first_chunk = tl.load(first_chunk_ptr + n)
    chunks = tl.load(first_chunk_ptr + n + 1) - first_chunk
    return n, (tl.program_id(0) % H).to(tl.int64), first_chunk, chunks, tl.load(cu_ptr + n), tl.load(cu_ptr + n + 1)


@triton.jit
def numbers_of_program(slot, KV: tl.constexpr, B: tl.constexpr):
    """The offsets of a program's B of the K V numbers of a state, in all slots `[MP, B]`, and whether they exist `[1,
    B]`."""
    at = tl.program_id(1) * B + tl.arange(0, B)
    return slot[:, None] * KV + at[None, :], (at < KV)[None, :]


@triton.jit
def chunk_moves(
    final_slot_ptr, used_ptr, total_ptr, cu_end, chunk, h, first, tokens, slot, H: tl.constexpr, M: tl.constexpr,
    LONG: tl.constexpr,
):  # fmt: skip
    """For a chunk: the age at its end of each slot in use at its start, 255 for others, and exp(G_end)."""
    used = tl.load(used_ptr + chunk * H + h)
    to = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + slot, mask=slot < M, other=255)
    last = tl.minimum(first + LONG, cu_end)
    return tl.where(slot < used, to, 255), tl.exp(tl.load(total_ptr + h * tokens + last - 1))


@triton.jit
def carry_states_kernel(
    high_ptr, low_ptr, final_ptr, total_ptr, final_slot_ptr, used_ptr, used_end_ptr, cu_ptr, first_chunk_ptr,
    by_length_ptr, tokens,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, LONG: tl.constexpr,
    B: tl.constexpr, HAS_STATE: tl.constexpr, HAS_FINAL: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """S(next) = exp(G_end) moves S + W, over the chunks of a sequence"""
    n, h, first_chunk, chunks, cu_begin, cu_end = sequence_of_program(by_length_ptr, first_chunk_ptr, cu_ptr, H)
    slot = tl.arange(0, MP)
    at, inside = numbers_of_program(slot, K * V, B)
    state = tl.zeros((MP, B), tl.float32)
    if HAS_STATE:
        there = inside & (slot < tl.load(used_ptr + first_chunk * H + h))[:, None]
        here = slot_offset(start_row(first_chunk, n, True), h, 0, H, M, K, V)
        state = load_state(high_ptr + here, low_ptr + here, at, there, SPLIT)
    for c in tl.range(0, chunks - 1, num_stages=AHEAD):
        chunk = first_chunk + c
        to, factor = chunk_moves(
            final_slot_ptr, used_ptr, total_ptr, cu_end, chunk, h, cu_begin + c * LONG, tokens, slot, H, M, LONG
        )
        there = inside & (slot < tl.load(used_ptr + (chunk + 1) * H + h))[:, None]
        here = slot_offset(start_row(chunk + 1, n, HAS_STATE), h, 0, H, M, K, V)
        added = load_state(high_ptr + here, low_ptr + here, at, there, SPLIT)
        moves = (slot[:, None] == to[None, :]).to(tl.float32)
        state = factor * select_rows(moves, state, PRECISION) + added
        tl.store(high_ptr + here + at, state.to(high_ptr.dtype.element_ty), mask=there)
    if HAS_FINAL:
        there = inside & (slot < tl.load(used_end_ptr + n * H + h))[:, None]
        here = slot_offset(n, h, 0, H, M, K, V)
        added = tl.load(final_ptr + here + at, mask=there, other=0.0)
        last = chunks - 1
        to, factor = chunk_moves(
            final_slot_ptr, used_ptr, total_ptr, cu_end, first_chunk + last, h, cu_begin + last * LONG, tokens, slot, H, M,
            LONG,
        )  # fmt: skip
        moves = (slot[:, None] == to[None, :]).to(tl.float32)
        tl.store(final_ptr + here + at, added + factor * select_rows(moves, state, PRECISION), mask=there)


@triton.jit
def carry_adjoint_kernel(
    dhigh_ptr, dlow_ptr, dstate_ptr, high_ptr, parts_ptr, total_ptr, final_slot_ptr, used_ptr, used_end_ptr, cu_ptr,
    first_chunk_ptr, by_length_ptr, tokens, all_chunks,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, LONG: tl.constexpr,
    B: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DFINAL: tl.constexpr, WANT_CARRY: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """dS = E + exp(G_end) moves^T dS(next), over the chunks of a sequence, the last first; and sums of the second term
    times S"""
    n, h, first_chunk, chunks, cu_begin, cu_end = sequence_of_program(by_length_ptr, first_chunk_ptr, cu_ptr, H)
    slot = tl.arange(0, MP)
    at, inside = numbers_of_program(slot, K * V, B)
    adjoint = tl.zeros((MP, B), tl.float32)
    last = first_chunk + chunks - 1
    if HAS_DFINAL:
        there = inside & (slot < tl.load(used_end_ptr + n * H + h))[:, None]
        here = slot_offset(end_row(last, n, True), h, 0, H, M, K, V)
        adjoint = load_state(dhigh_ptr + here, dlow_ptr + here, at, there, SPLIT)
    for step in tl.range(0, chunks, num_stages=AHEAD):
        c = chunks - 1 - step
        chunk = first_chunk + c
        there = inside & (slot < tl.load(used_ptr + chunk * H + h))[:, None]
        to, factor = chunk_moves(
            final_slot_ptr, used_ptr, total_ptr, cu_end, chunk, h, cu_begin + c * LONG, tokens, slot, H, M, LONG
        )
        moves = (to[:, None] == slot[None, :]).to(tl.float32)
        adjoint = factor * select_rows(moves, adjoint, PRECISION)
        if WANT_CARRY:
            here = slot_offset(start_row(chunk, n, HAS_STATE), h, 0, H, M, K, V)
            state = tl.load(high_ptr + here + at, mask=there & (HAS_STATE | (c > 0)), other=0.0).to(tl.float32)
            at_part = (tl.program_id(1).to(tl.int64) * all_chunks + chunk) * H + h
            tl.store(parts_ptr + at_part, tl.sum(adjoint * state))
        here = slot_offset(end_row(chunk - 1, n, HAS_DFINAL), h, 0, H, M, K, V)
        adjoint += load_state(dhigh_ptr + here, dlow_ptr + here, at, there & (c > 0), SPLIT)
        tl.store(dhigh_ptr + here + at, adjoint.to(dhigh_ptr.dtype.element_ty), mask=there & (c > 0))
    if HAS_STATE:
        there = inside & (slot < tl.load(used_ptr + first_chunk * H + h))[:, None]
        here = slot_offset(n, h, 0, H, M, K, V)
        adjoint += tl.load(dstate_ptr + here + at, mask=there, other=0.0)
        tl.store(dstate_ptr + here + at, adjoint, mask=there)
