# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The states at the start of every chunk, for plain decay.

    S_a(next) = exp(G_end) sum_{i: final_slot[i] = a} S_i + sum_{j: final_token[j] = a} exp(G_end - G_j) k_j v_j^T

Ages are monotone, so the old slots and the tokens that make up a new slot are two ranges: a chunk costs as many products
as it has blocks of tokens and slots touched. Every chunk is a launch, in which all slots and blocks of K x V go side by
side: few sequences and heads fill a GPU, too.
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
    if state is not None:
        kept.put(pieces.first_chunk[:-1].long(), state)
    blocks = blocks_of(key_dim, value_dim, tiles)
    for c, sequences in chunks_forward(pieces, return_state=return_state):
        advance_states_kernel[(sequences * heads, slots, blocks)](
            k, v, total, kept.high, kept.low, kept.high if final is None else final,
            tables.final_slot, tables.final_token, tables.used, tables.used_end, pieces.cu, pieces.first_chunk,
            pieces.by_length, pieces.tokens, c, H=heads, G=groups, K=key_dim, V=value_dim, M=slots, MP=padded_slots(slots),
            LONG=pieces.long, BJ=pieces.tile, BK=tiles.block_k, BV=tiles.block_v, HAS_STATE=state is not None,
            HAS_FINAL=return_state, SPLIT=kept.split, PRECISION="ieee", num_warps=tiles.warps,
            num_stages=1,
        )  # fmt: skip
    return kept, final


def blocks_of(key_dim: int, value_dim: int, tiles: Tiles) -> int:
    """Blocks of K x V in a state."""
    return -(-key_dim // tiles.block_k) * -(-value_dim // tiles.block_v)


def chunks_forward(pieces: Pieces, *, return_state: bool) -> list[tuple[int, int]]:
    """Numbers of chunks with something after them, and how many sequences have such a chunk: the longest ones. One long
    document among many short ones must not make programs for all of them."""
    after = 0 if return_state else 1
    return [(c, pieces.with_more_than(c + after)) for c in range(pieces.most_chunks - after)]


def chunks_backward(pieces: Pieces, *, has_state: bool, has_dfinal: bool) -> list[tuple[int, int]]:
    """The same, the last first, of chunks whose end may have an adjoint and whose start may have states."""
    chunks = chunks_forward(pieces, return_state=has_dfinal)
    return [(c, sequences) for c, sequences in reversed(chunks) if has_state or c > 0]


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
def block_of(part, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Rows and columns of a block of a state."""
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    return (part // BLOCKS_V) * BK + tl.arange(0, BK), (part % BLOCKS_V) * BV + tl.arange(0, BV)


@triton.jit
def chunk_ranges(
    final_slot_ptr, final_token_ptr, used_ptr, used_end_ptr, chunk, is_last, n, h, a, first, length, tokens,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """What becomes the slot of age a at a chunk's end: old slots `i0..i1` and tokens `j0..j1` of the chunk; and whether
    there is such a slot. Older tokens have higher ages, older slots come later."""
    slot = tl.arange(0, MP)
    index = tl.arange(0, LONG)
    used = tl.load(used_ptr + chunk * H + h)
    if is_last:
        used_next = tl.load(used_end_ptr + n * H + h)
    else:
        used_next = tl.load(used_ptr + (chunk + 1) * H + h)
    slot_to = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + slot, mask=slot < used, other=255).to(
        tl.int32
    )
    token_to = tl.load(final_token_ptr + h * tokens + first + index, mask=index < length, other=0).to(tl.int32)
    token_to = tl.where(index < length, token_to, -1)
    i0, i1 = tl.sum((slot_to < a).to(tl.int32)), tl.sum((slot_to <= a).to(tl.int32))
    j0, j1 = tl.sum((token_to > a).to(tl.int32)), tl.sum((token_to >= a).to(tl.int32))
    return i0, i1, j0, j1, a < used_next


@triton.jit(do_not_specialize=["c"])
def advance_states_kernel(
    k_ptr, v_ptr, total_ptr, high_ptr, low_ptr, final_ptr,
    final_slot_ptr, final_token_ptr, used_ptr, used_end_ptr, cu_ptr, first_chunk_ptr, by_length_ptr, tokens, c,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    LONG: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_FINAL: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S_a(next) = exp(G_end) sum of S_i + sum of exp(G_end - G_j) k_j v_j^T, over chunk c of every sequence"""
    n = tl.load(by_length_ptr + tl.program_id(0) // H)
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
            row_k, row_v = block_of(tl.program_id(2), K, V, BK, BV)
            block = row_k[:, None] * V + row_v[None, :]
            inside = (row_k < K)[:, None] & (row_v < V)[None, :]
            total_end = tl.load(total_ptr + h * tokens + first + length - 1)
            acc = tl.zeros((BK, BV), tl.float32)
            for i in range(i0, i1):
                at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + block
                acc += load_state(high_ptr, low_ptr, at, inside, SPLIT)
            acc *= tl.exp(total_end)
            acc = written(
                acc, k_ptr, v_ptr, total_ptr, total_end, tokens, h, first, j0, j1, row_k, row_v,
                H, G, K, V, BJ, PRECISION,
            )  # fmt: skip
            if c + 1 < chunks:
                at = slot_offset(start_row(chunk + 1, n, HAS_STATE), h, a, H, M, K, V) + block
                store_state(high_ptr, low_ptr, at, acc, inside, SPLIT)
            elif HAS_FINAL:
                tl.store(final_ptr + slot_offset(n, h, a, H, M, K, V) + block, acc, mask=inside)
