# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The states at the start of every chunk for the delta rule, the adjoint of that pass, and the gradient of the carry.

    S_a(next) = P sum_{i: final_slot[i] = a} S_i + sum_{j: final_token[j] = a} U_j v_j^T,   P = carry I - R
    dS_i      = E_i + P^T dS_{final_slot[i]}(next),       dP = sum_i dS_{final_slot[i]}(next) S_i^T

R (`removal`) is kept apart from the identity: rounding it to 16 bits is harmless, rounding `1 - small` would not be.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces, locate
from dla_kernels.reader.fused.states import block_of, blocks_of, chunk_ranges, chunks_backward, end_row, start_row
from dla_kernels.reader.fused.states_layout import StateRows, load_state, slot_offset, store_state


def advance_states_delta(
    u: Tensor, v: Tensor, carry: Tensor, removal: Tensor, state: Tensor | None, tables: AgeTables, pieces: Pieces,
    tiles: Tiles, *, slots: int, return_state: bool,
) -> tuple[StateRows, Tensor | None]:  # fmt: skip
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
    grid = pieces.sequences * heads, slots, blocks_of(key_dim, value_dim, tiles)
    for c in range(pieces.most_chunks if return_state else pieces.most_chunks - 1):
        advance_states_delta_kernel[grid](
            u, v, carry, removal, kept.high, kept.low, kept.high if final is None else final,
            tables.final_slot, tables.final_token, tables.used, tables.used_end, pieces.cu, pieces.first_chunk,
            pieces.tokens, c, H=heads, K=key_dim, V=value_dim, M=slots, MP=padded_slots(slots), LONG=pieces.long,
            BJ=pieces.tile, BK=tiles.block_k, BV=tiles.block_v, HAS_STATE=state is not None, HAS_FINAL=return_state,
            SPLIT=kept.split, PRECISION="ieee", num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return kept, final


def carry_adjoint_delta(
    carry: Tensor, removal: Tensor, adjoint: StateRows, dfinal: Tensor | None, dstate: Tensor | None,
    tables: AgeTables, pieces: Pieces, tiles: Tiles,
) -> None:  # fmt: skip
    """Turns the rows of `adjoint` (and `dstate`) from E into dS, in place; the arguments as in states.carry_adjoint."""
    _, heads, slots, key_dim, value_dim = adjoint.high.shape
    has_state, has_dfinal = dstate is not None, dfinal is not None
    if dfinal is not None:
        adjoint.put(pieces.first_chunk[1:].long() - 1, dfinal)
    for c in chunks_backward(pieces, has_state=has_state, has_dfinal=has_dfinal):
        carry_adjoint_delta_kernel[(pieces.sequences * heads, slots, blocks_of(key_dim, value_dim, tiles))](
            carry, removal, adjoint.high, adjoint.low, adjoint.high if dstate is None else dstate,
            tables.final_slot, tables.used, pieces.first_chunk, c, H=heads, K=key_dim, V=value_dim, M=slots,
            BK=tiles.block_k, BV=tiles.block_v, HAS_STATE=has_state, HAS_DFINAL=has_dfinal, SPLIT=adjoint.split,
            PRECISION="ieee", num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip


def carry_gradient(
    kept: StateRows, adjoint: StateRows, tables: AgeTables, pieces: Pieces, tiles: Tiles,
    *, has_state: bool, has_dfinal: bool,
) -> Tensor:  # fmt: skip
    """dP `[chunks, H, K, K]` float32."""
    _, heads, slots, key_dim, value_dim = kept.high.shape
    dcarry = torch.zeros(pieces.chunks, heads, key_dim, key_dim, dtype=torch.float32, device=kept.high.device)
    blocks = triton.cdiv(key_dim, tiles.block_k)
    carry_gradient_kernel[(pieces.chunks, heads, blocks * blocks)](
        kept.high, adjoint.high, dcarry, tables.final_slot, tables.used,
        pieces.chunk_sequence, pieces.chunk_number, pieces.cu,
        H=heads, K=key_dim, V=value_dim, M=slots, LONG=pieces.long, BK=tiles.block_k, BV=tiles.block_v,
        HAS_STATE=has_state, HAS_DFINAL=has_dfinal, PRECISION="ieee", num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dcarry


@triton.jit
def slots_sum(
    high_ptr, low_ptr, base, begin, end, row_k, row_v, inside,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A block of the sum of slots `begin..end`: those that become one."""
    acc = tl.zeros((BK, BV), tl.float32)
    for i in range(begin, end):
        acc += load_state(high_ptr, low_ptr, base + i * (K * V) + row_k[:, None] * V + row_v[None, :], inside, SPLIT)
    return acc


@triton.jit(do_not_specialize=["c"])
def advance_states_delta_kernel(
    u_ptr, v_ptr, carry_ptr, removal_ptr, high_ptr, low_ptr, final_ptr,
    final_slot_ptr, final_token_ptr, used_ptr, used_end_ptr, cu_ptr, first_chunk_ptr, tokens, c,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, LONG: tl.constexpr,
    BJ: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr, HAS_FINAL: tl.constexpr,
    SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S_a(next) = (carry - R) sum of S_i + sum of U_j v_j^T, over chunk c of every sequence"""
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    a = tl.program_id(1)
    first_chunk = tl.load(first_chunk_ptr + n)
    chunks = tl.load(first_chunk_ptr + n + 1) - first_chunk
    if c < chunks - (0 if HAS_FINAL else 1):
        chunk = first_chunk + c
        first = tl.load(cu_ptr + n) + c * LONG
        length = tl.minimum(tl.load(cu_ptr + n + 1) - first, LONG).to(tl.int32)
        i0, i1, j0, j1, is_used = chunk_ranges(
            final_slot_ptr, final_token_ptr, used_ptr, used_end_ptr, chunk, c + 1 == chunks, n, h, a, first, length, tokens,
            H, M, MP, LONG,
        )  # fmt: skip
        if is_used:
            dtype = v_ptr.dtype.element_ty
            row_k, row_v = block_of(tl.program_id(2), K, V, BK, BV)
            in_k = row_k < K
            in_v = row_v < V
            inside = in_k[:, None] & in_v[None, :]
            removal = removal_ptr + (chunk.to(tl.int64) * H + h) * (K * K)
            base = slot_offset(start_row(chunk, n, HAS_STATE), h, 0, H, M, K, V)
            acc = tl.load(carry_ptr + chunk * H + h) * slots_sum(
                high_ptr, low_ptr, base, i0, i1, row_k, row_v, inside, K, V, BK, BV, SPLIT
            )
            if i1 > i0:
                for inner in range(0, K, BK):
                    row_l = inner + tl.arange(0, BK)
                    in_l = row_l < K
                    state = slots_sum(
                        high_ptr,
                        low_ptr,
                        base,
                        i0,
                        i1,
                        row_l,
                        row_v,
                        in_l[:, None] & in_v[None, :],
                        K,
                        V,
                        BK,
                        BV,
                        SPLIT,
                    )
                    r = tl.load(
                        removal + row_k[:, None] * K + row_l[None, :], mask=in_k[:, None] & in_l[None, :], other=0.0
                    )
                    acc -= tl.dot(r, state.to(dtype), input_precision=PRECISION)  # [BK, BK] @ [BK, BV] -> [BK, BV]
            for at_j in range(j0, j1, BJ):
                token = at_j + tl.arange(0, BJ)
                mask = token < j1
                j = first + token
                u = tl.load(
                    u_ptr + (j * H + h)[None, :] * K + row_k[:, None], mask=mask[None, :] & in_k[:, None], other=0.0
                )
                v = tl.load(
                    v_ptr + (j * H + h)[:, None] * V + row_v[None, :], mask=mask[:, None] & in_v[None, :], other=0.0
                )
                acc += tl.dot(u, v, input_precision=PRECISION)  # [BK, BJ] @ [BJ, BV] -> [BK, BV]
            block = row_k[:, None] * V + row_v[None, :]
            if c + 1 < chunks:
                at = slot_offset(start_row(chunk + 1, n, HAS_STATE), h, a, H, M, K, V) + block
                store_state(high_ptr, low_ptr, at, acc, inside, SPLIT)
            elif HAS_FINAL:
                tl.store(final_ptr + slot_offset(n, h, a, H, M, K, V) + block, acc, mask=inside)


@triton.jit(do_not_specialize=["c"])
def carry_adjoint_delta_kernel(
    carry_ptr, removal_ptr, dhigh_ptr, dlow_ptr, dstate_ptr, final_slot_ptr, used_ptr, first_chunk_ptr, c,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    HAS_STATE: tl.constexpr, HAS_DFINAL: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dS_i = E_i + (carry - R)^T dS_{final_slot[i]}(next), over chunk c of every sequence"""
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    i = tl.program_id(1)
    first_chunk = tl.load(first_chunk_ptr + n)
    chunks = tl.load(first_chunk_ptr + n + 1) - first_chunk
    if c < chunks - (0 if HAS_DFINAL else 1):
        chunk = first_chunk + c
        if i < tl.load(used_ptr + chunk * H + h):
            dtype = dhigh_ptr.dtype.element_ty
            row_k, row_v = block_of(tl.program_id(2), K, V, BK, BV)
            in_k = row_k < K
            in_v = row_v < V
            inside = in_k[:, None] & in_v[None, :]
            block = row_k[:, None] * V + row_v[None, :]
            removal = removal_ptr + (chunk.to(tl.int64) * H + h) * (K * K)
            a = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + i).to(tl.int32)
            base = slot_offset(end_row(chunk, n, HAS_DFINAL), h, a, H, M, K, V)
            acc = tl.load(carry_ptr + chunk * H + h) * load_state(dhigh_ptr, dlow_ptr, base + block, inside, SPLIT)
            for inner in range(0, K, BK):
                row_l = inner + tl.arange(0, BK)
                in_l = row_l < K
                at = base + row_l[:, None] * V + row_v[None, :]
                dnext = load_state(dhigh_ptr, dlow_ptr, at, in_l[:, None] & in_v[None, :], SPLIT)
                r = tl.load(
                    removal + row_l[None, :] * K + row_k[:, None], mask=in_k[:, None] & in_l[None, :], other=0.0
                )
                acc -= tl.dot(r, dnext.to(dtype), input_precision=PRECISION)  # [BK, BK] @ [BK, BV] -> [BK, BV]
            if c > 0:
                at = slot_offset(end_row(chunk - 1, n, HAS_DFINAL), h, i, H, M, K, V) + block
                acc += load_state(dhigh_ptr, dlow_ptr, at, inside, SPLIT)
                store_state(dhigh_ptr, dlow_ptr, at, acc, inside, SPLIT)
            elif HAS_STATE:
                at = slot_offset(n, h, i, H, M, K, V) + block
                tl.store(dstate_ptr + at, tl.load(dstate_ptr + at, mask=inside, other=0.0) + acc, mask=inside)


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
            a = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + i).to(tl.int32)
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
