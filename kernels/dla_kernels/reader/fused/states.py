# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The states at the start of every chunk, for plain decay.

    S_a(next) = exp(G_end) sum_{i: final_slot[i] = a} S_i + W_a,   W_a = sum_{j: final_token[j] = a} exp(G_end - G_j) k_j v_j^T

W, which takes matrix products, is computed for all chunks and slots in parallel (ages are monotone, so the tokens of a
slot are a range). Then carry.py goes from chunk to chunk.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables
from dla_kernels.reader.fused.carry import carry_states
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces, locate
from dla_kernels.reader.fused.states_layout import (
    StateRows,
    block_of,
    launches_of,
    slot_offset,
    start_row,
    store_state,
)


def advance_states(
    k: Tensor, v: Tensor, total: Tensor, state: Tensor | None, tables: AgeTables, pieces: Pieces, tiles: Tiles,
    *, slots: int, return_state: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """k `[tokens, G, K]`, v `[tokens, H, V]`, total = G `[H, tokens]`, state `[N, H, M, K, V]` float32 by age or None.

    Returns the states at chunk starts `[rows, H, M, K, V]` in the type of v (row = chunk, or, without initial states,
    chunk - n - 1: a sequence's first chunk has none) and, if asked, those at the ends `[N, H, M, K, V]` float32.
    """
    (_, groups, key_dim), (_, heads, value_dim) = k.shape, v.shape
    rows = pieces.chunks - (pieces.sequences if state is None else 0)
    kept = StateRows(rows, heads, slots, key_dim, value_dim, v)
    final = None
    if return_state:
        shape = (pieces.sequences, heads, slots, key_dim, value_dim)
        final = torch.zeros(shape, dtype=torch.float32, device=v.device)
    if state is not None:
        kept.put(pieces.first_chunk[:-1].long(), state)
    blocks = triton.cdiv(key_dim, tiles.block_k) * triton.cdiv(value_dim, tiles.block_v)
    for begin, launched in launches_of(pieces.chunks):
        chunk_writes_kernel[(slots * blocks, heads, launched)](
            k, v, total, kept.high, kept.low, kept.high if final is None else final,
            tables.token_ends, tables.used, tables.used_end, pieces.chunk_sequence, pieces.chunk_number, pieces.cu,
            pieces.tokens, begin, H=heads, G=groups, K=key_dim, V=value_dim, M=slots, LONG=pieces.long, BJ=pieces.tile,
            BK=tiles.block_k, BV=tiles.block_v, HAS_STATE=state is not None, HAS_FINAL=return_state, SPLIT=kept.split,
            PRECISION="ieee", num_warps=tiles.warps, num_stages=1,
        )  # fmt: skip
    carry_states(kept, final, total, tables, pieces, has_state=state is not None)
    return kept.high, final


@triton.jit
def written(
    k_ptr, v_ptr, total_ptr, total_end, tokens, h, first, begin, end, row_k, row_v,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BJ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum over the chunk's tokens `begin..end` of `exp(G_end - G_j) k_j v_j^T`, block `row_k` x `row_v`."""
    dtype = v_ptr.dtype.element_ty
    g = h // (H // G)
    acc = tl.zeros((row_k.shape[0], row_v.shape[0]), tl.float32)
    for start in range(begin, end, BJ):
        index = start + tl.arange(0, BJ)
        mask = index < end
        j = first + index
        total = tl.load(total_ptr + h * tokens + j, mask=mask, other=float("inf"))
        k = tl.load(
            k_ptr + (j * G + g)[None, :] * K + row_k[:, None], mask=mask[None, :] & (row_k < K)[:, None], other=0.0
        )
        v = tl.load(
            v_ptr + (j * H + h)[:, None] * V + row_v[None, :], mask=mask[:, None] & (row_v < V)[None, :], other=0.0
        )
        factor = tl.exp(total_end - total)
        key = (k.to(tl.float32) * factor[None, :]).to(dtype)
        acc += tl.dot(key, v, input_precision=PRECISION)  # [BK, BJ] @ [BJ, BV] -> [BK, BV]
    return acc


@triton.jit
def range_of_age(token_ends_ptr, chunk, h, a, H: tl.constexpr, M: tl.constexpr):
    """The chunk's tokens `begin..end` that are in the slot of age a at its end."""
    token_ends_ptr += (chunk.to(tl.int64) * H + h) * (M + 1) + a
    return tl.load(token_ends_ptr + 1), tl.load(token_ends_ptr)


@triton.jit(do_not_specialize=["begin"])
def chunk_writes_kernel(
    k_ptr, v_ptr, total_ptr, high_ptr, low_ptr, final_ptr, token_ends_ptr, used_ptr, used_end_ptr, sequence_ptr,
    number_ptr, cu_ptr, tokens, begin,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, LONG: tl.constexpr,
    BJ: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr, HAS_FINAL: tl.constexpr,
    SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W_a = sum of exp(G_end - G_j) k_j v_j^T, for the chunks from `begin` on, stored in place of the state that
    follows each"""
    a = tl.program_id(0) % M
    h = tl.program_id(1).to(tl.int64)
    chunk = begin + tl.program_id(2)
    n, _, first, last = locate(chunk, sequence_ptr, number_ptr, cu_ptr, LONG)
    is_last = last == tl.load(cu_ptr + n + 1)
    used = tl.load(used_end_ptr + n * H + h)
    if not is_last:
        used = tl.load(used_ptr + (chunk + 1) * H + h)
    if not HAS_FINAL:
        used = tl.where(is_last, 0, used)
    if a < used:
        j0, j1 = range_of_age(token_ends_ptr, chunk, h, a, H, M)
        row_k, row_v = block_of(tl.program_id(0) // M, K, V, BK, BV)
        total_end = tl.load(total_ptr + h * tokens + last - 1)
        acc = written(
            k_ptr, v_ptr, total_ptr, total_end, tokens, h, first, j0, j1, row_k, row_v, H, G, K, V, BJ, PRECISION
        )
        block = row_k[:, None] * V + row_v[None, :]
        inside = (row_k < K)[:, None] & (row_v < V)[None, :]
        if not is_last:
            at = slot_offset(start_row(chunk + 1, n, HAS_STATE), h, a, H, M, K, V) + block
            store_state(high_ptr, low_ptr, at, acc, inside, SPLIT)
        elif HAS_FINAL:
            tl.store(final_ptr + slot_offset(n, h, a, H, M, K, V) + block, acc, mask=inside)
