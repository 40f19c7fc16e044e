# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The contribution of the states at a chunk's end to the gradient of the keys.

dU_j = dS_a(next) v_j,   dk_j = exp(G_end - G_j) dU_j,   a the slot that j is in at the end of its chunk

For the delta rule, k is U itself and G is zero.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables
from dla_kernels.reader.fused.configs import Tiles, exact_products, inner_block
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.states_layout import end_row, slot_offset


def keys_backward(
    v: Tensor, total: Tensor, adjoint: Tensor, tables: AgeTables, pieces: Pieces, tiles: Tiles, *, slots: int,
    key_dim: int, has_dfinal: bool,
) -> Tensor:  # fmt: skip
    """dk per head `[tokens, H, K]` in the type of v `[tokens, H, V]`; total = G `[H, tokens]`."""
    tokens, heads, value_dim = v.shape
    dk = torch.empty(tokens, heads, key_dim, dtype=v.dtype, device=v.device)
    block_k = inner_block(key_dim, tiles)
    keys_backward_kernel[(pieces.tiles, heads, triton.cdiv(key_dim, block_k))](
        v, total, adjoint, dk, tables.final_token, pieces.tile_sequence, pieces.tile_number, pieces.cu,
        pieces.first_chunk, tokens,
        H=heads, K=key_dim, V=value_dim, M=slots, TILE=pieces.tile, LONG=pieces.long, BK=block_k, BV=tiles.block_v,
        HAS_DFINAL=has_dfinal, EXACT=exact_products(v.dtype), num_warps=tiles.warps, num_stages=1,
    )  # fmt: skip
    return dk


@triton.jit
def keys_backward_kernel(
    v_ptr, total_ptr, dhigh_ptr, dk_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, HAS_DFINAL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dk_j = exp(G_end - G_j) dS_{final_token[j]} v_j"""
    h = tl.program_id(1).to(tl.int64)
    n, chunk, _, _, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    j = first + tl.arange(0, TILE)
    there = j < last
    stop = tl.load(cu_ptr + n + 1)
    chunk_last = tl.minimum(chunk_first + LONG, stop)
    row_k = tl.program_id(2) * BK + tl.arange(0, BK)
    in_k = row_k < K
    dk = tl.zeros((TILE, BK), tl.float32)
    if HAS_DFINAL or chunk_last < stop:
        to = tl.load(final_token_ptr + h * tokens + j, mask=there, other=0).to(tl.int32)
        for a in range(tl.min(tl.where(there, to, 255)), tl.max(tl.where(there, to, 0)) + 1):
            member = there & (to == a)
            at = slot_offset(end_row(chunk, n, HAS_DFINAL), h, a, H, M, K, V)
            for start in range(0, V, BV):
                row_v = start + tl.arange(0, BV)
                in_v = row_v < V
                v = tl.load(
                    v_ptr + (j * H + h)[:, None] * V + row_v[None, :], mask=member[:, None] & in_v[None, :], other=0.0
                )
                dstate = tl.load(
                    dhigh_ptr + at + row_k[None, :] * V + row_v[:, None], mask=in_k[None, :] & in_v[:, None], other=0.0
                )
                dk += tl.dot(v, dstate, input_precision=EXACT)  # [TILE, BV] @ [BV, BK] -> [TILE, BK]
        end = tl.load(total_ptr + h * tokens + chunk_last - 1)
        dk *= tl.exp(end - tl.load(total_ptr + h * tokens + j, mask=there, other=float("inf")))[:, None]
    inside = there[:, None] & in_k[None, :]
    tl.store(dk_ptr + (j * H + h)[:, None] * K + row_k[None, :], dk.to(dk_ptr.dtype.element_ty), mask=inside)
