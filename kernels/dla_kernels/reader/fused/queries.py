# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The contribution of a chunk's slots to the gradient of the queries and, from the same products, the gradient of the
slots' weights.

dQe_t = sum_i w[i, t] (do_t S_i^T),   dw[i, t] = Qe_t . (do_t S_i^T),   dq_t = scale exp(G_t) dQe_t
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces, locate_rows
from dla_kernels.reader.fused.states_layout import slot_offset, start_row
from dla_kernels.reader.fused.weights import Weights


def queries_backward(
    q: Tensor, do: Tensor, weights: Weights, kept: Tensor, scale: float, tables: AgeTables, pieces: Pieces,
    tiles: Tiles, *, has_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dq per head `[tokens, H, K]`, and `dw exp(-G_t)` `[K blocks, H, M, tokens]` float32, whose blocks must be summed;
    the latter is meaningless for slots that are not in use."""
    (tokens, groups, key_dim), (_, heads, value_dim) = q.shape, do.shape
    slots = weights.slots
    blocks_k = triton.cdiv(key_dim, tiles.block_k)
    dq = torch.empty(tokens, heads, key_dim, dtype=q.dtype, device=q.device)
    dweight = torch.empty(blocks_k, heads, slots, tokens, dtype=torch.float32, device=q.device)
    queries_slots_kernel[(pieces.chunks * (pieces.long // tiles.rows), heads, blocks_k)](
        q, do, weights.at_chunk, kept, dq, dweight, tables.used, pieces.chunk_sequence, pieces.chunk_number,
        pieces.cu, tokens, scale,
        H=heads, G=groups, K=key_dim, V=value_dim, M=slots, LONG=pieces.long, ROWS=tiles.rows, BK=tiles.block_k,
        BV=tiles.block_v, HAS_STATE=has_state, PRECISION="ieee", num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dq, dweight


@triton.jit
def queries_slots_kernel(
    q_ptr, do_ptr, weight_ptr, high_ptr, dq_ptr, dweight_ptr, used_ptr, sequence_ptr, number_ptr, cu_ptr,
    tokens, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, LONG: tl.constexpr,
    ROWS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, HAS_STATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq_t = scale sum_i exp(G_t) w[i, t] (do_t S_i^T),   exp(-G_t) dw[i, t] = scale q_t . (do_t S_i^T)"""
    h = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    n, chunk, first, last = locate_rows(tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, LONG, ROWS)
    if first < last:
        BLOCKS: tl.constexpr = (V + BV - 1) // BV
        t = first + tl.arange(0, ROWS)
        there = t < last
        row_k = part * BK + tl.arange(0, BK)
        in_k = row_k < K
        inside = there[:, None] & in_k[None, :]
        q = tl.load(q_ptr + (t * G + h // (H // G))[:, None] * K + row_k[None, :], mask=inside, other=0.0)
        dq = tl.zeros((ROWS, BK), tl.float32)
        dweight = tl.zeros((ROWS,), tl.float32)
        row_v = tl.arange(0, BV)
        in_v = row_v < V
        row_do = do_ptr + (t * H + h)[:, None] * V
        do = tl.load(row_do + row_v[None, :], mask=there[:, None] & in_v[None, :], other=0.0)
        used = tl.load(used_ptr + chunk * H + h)
        weight = tl.load(weight_ptr + h * M * tokens + t, mask=there, other=0.0)
        # one loop over slots and blocks of V, so that its loads run ahead; weights, no factors of products, are loaded
        # ahead here
        for step in range(0, used * BLOCKS):
            i = step // BLOCKS
            following = tl.minimum((step + 1) // BLOCKS, used - 1)
            weight_after = tl.load(weight_ptr + (h * M + following) * tokens + t, mask=there, other=0.0)
            if BLOCKS > 1:
                row_v = (step % BLOCKS) * BV + tl.arange(0, BV)
                in_v = row_v < V
                do = tl.load(row_do + row_v[None, :], mask=there[:, None] & in_v[None, :], other=0.0)
            at = slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V) + row_k[None, :] * V + row_v[:, None]
            state = tl.load(high_ptr + at, mask=in_k[None, :] & in_v[:, None], other=0.0)
            seen = tl.dot(do, state, input_precision=PRECISION)  # [ROWS, BV] @ [BV, BK] -> [ROWS, BK]
            dq += weight[:, None] * seen
            dweight = tl.where(step % BLOCKS == 0, 0.0, dweight) + tl.sum(q.to(tl.float32) * seen, 1)
            at = ((part * H + h) * M + i) * tokens + t
            tl.store(dweight_ptr + at, dweight * scale, mask=there & (step % BLOCKS == BLOCKS - 1))
            weight = weight_after
        tl.store(dq_ptr + (t * H + h)[:, None] * K + row_k[None, :], (dq * scale).to(q.dtype), mask=inside)
