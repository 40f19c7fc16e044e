# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The gradients of what tiles do to a state (tile_solve.py has the forward's equations and letters).

    E = dMx - dQe K^T             dK' = dK - Mx^T dQe          F = k dU^T
    dN = E Tm^T                   dTm = N^T E + exp(G_end - G) F
    dX = dTm diag(beta)           dA = -X^T dX X^T             dbeta_j = sum_t dTm X,   dbeta_t += sum_j dA (k . k) D
    d(q . k) = scale dN D         d(k . k) = dA beta D
    dq = scale exp(G) dQe + d(q . k) k
    dk = exp(G) dK' + exp(G_end - G) (Tm dU) + d(q . k)^T q + (d(k . k) + d(k . k)^T) k

Log decays enter through D, exp(G) and exp(G_end - G). With `P = d(q . k) q . k + d(k . k) k . k` below the diagonal,
which is the part of D, `dlog_decay_s = sum_{t>=s>j} P[t,j] + sum_{j<s} dto_end_j + sum_{t>=s} dfrom_start_t`; the last
two are already multiplied by the factor that they are the gradient of.

Two kernels compute the `[TILE, TILE]` matrices and the sums over them, a third everything with K columns. The third
loads the matrices from memory in the orientation that it needs, so that no result of a product is transposed
(TRITON-PITFALLS.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.sums import group_sums
from dla_kernels.reader.fused.tile_solve import (
    SolvedTiles,
    decay_to_end,
    sizes_of,
    square_at,
    tile_decays,
    tile_decays_transposed,
    tile_tokens,
    tiles_of,
    token_columns,
    token_products,
    token_rows,
)


def solve_tiles_backward(
    q: Tensor, k: Tensor, log_decay: Tensor, beta: Tensor, scale: float, pieces: Pieces, block: int, solved: SolvedTiles,
    d_own: Tensor, dread: Tensor, dwrite: Tensor, dkeys: Tensor, dlog_kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk `[tokens, G, K]` in their type, dlog_decay and dbeta `[tokens, H]` float32.

    d_own to dlog_kept: gradients of the parts of `solved`, contiguous float32 in the same shapes; d_own is overwritten.
    The rest as in `solve_tiles`.
    """
    heads, groups, key_dim = beta.shape[1], k.shape[1], k.shape[2]
    dlog_decay, dbeta = (torch.empty(beta.shape, dtype=torch.float32, device=k.device) for _ in range(2))
    dscores, doverlap = (torch.empty_like(solved.own) for _ in range(2))
    per_head = k.dtype if heads == groups else torch.float32
    dq, dk = (torch.empty(pieces.tokens, heads, key_dim, dtype=per_head, device=k.device) for _ in range(2))
    where, sizes = tiles_of(pieces), sizes_of(k, heads, pieces, block)
    if k.dtype != torch.float32 and sizes["EXACT"] == "tf32x3":
        # These gradients may be rounded like all others, and three products take more registers than an A100 has.
        sizes["EXACT"] = "tf32"
    grid = pieces.tiles, heads
    tile_scores_backward_kernel[grid](
        q, k, log_decay, beta, solved.inverse, solved.own, d_own, dread, dkeys, dlog_kept, dscores, dlog_decay, *where,
        scale, **sizes,
    )  # fmt: skip
    tile_system_backward_kernel[grid](
        q, k, log_decay, beta, solved.inverse, d_own, dwrite, doverlap, dlog_decay, dbeta, *where, scale, **sizes
    )
    tile_rows_backward_kernel[(pieces.tiles, heads, triton.cdiv(key_dim, sizes["BK"]))](
        q, k, log_decay, beta, solved.inverse, solved.own, dread, dwrite, dkeys, dscores, doverlap, dq, dk, *where, scale,
        **sizes,
    )  # fmt: skip
    return group_sums(dq, groups).to(q.dtype), group_sums(dk, groups).to(k.dtype), dlog_decay, dbeta


@triton.jit
def head_rows(ptr, tile, h, tiles, K: tl.constexpr, TILE: tl.constexpr, START, B: tl.constexpr):
    """`[TILE, B]`: columns START.. of a tile of `[H, tiles TILE, K]`."""
    i = START + tl.arange(0, B)
    at = ((h * tiles + tile) * TILE + tl.arange(0, TILE))[:, None] * K + i[None, :]
    return tl.load(ptr + at, mask=(i < K)[None, :], other=0.0)


@triton.jit
def head_columns(ptr, tile, h, tiles, K: tl.constexpr, TILE: tl.constexpr, START, B: tl.constexpr):
    """The same as `[B, TILE]`."""
    i = START + tl.arange(0, B)
    at = ((h * tiles + tile) * TILE + tl.arange(0, TILE))[None, :] * K + i[:, None]
    return tl.load(ptr + at, mask=(i < K)[:, None], other=0.0)


@triton.jit
def decay_between(product, TILE: tl.constexpr):
    """`sum_{t>=s>j} product[t, j]`, for each s: the gradient of the log decays that D sums up."""
    row = tl.arange(0, TILE)
    from_here = tl.cumsum(product, 0, reverse=True)
    return tl.sum(tl.where(row[:, None] > row[None, :], from_here, 0.0), 1)


@triton.jit
def tile_scores_backward_kernel(
    q_ptr, k_ptr, log_decay_ptr, beta_ptr, inverse_ptr, own_ptr, d_own_ptr, dread_ptr, dkeys_ptr, dlog_kept_ptr,
    dscores_ptr, dlog_decay_ptr, sequence_ptr, number_ptr, cu_ptr, tiles, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """E in place of dMx; d(q . k); and dlog_decay without the parts that enter through A and exp(G_end - G)"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    g = h // (H // G)
    t, _, there, log_decay, beta = tile_tokens(
        tile, h, log_decay_ptr, beta_ptr, sequence_ptr, number_ptr, cu_ptr, H, TILE
    )
    from_start = tl.exp(tl.cumsum(log_decay, 0))
    square = square_at(tile, h, tiles, TILE, False)

    # dQe k^T, for dMx; and sums over K of the terms with the factor exp(G)
    reads = tl.zeros((TILE, TILE), tl.float32)
    dfrom_start = tl.zeros((TILE,), tl.float32)
    for start in range(0, K, BK):
        dread = head_rows(dread_ptr, tile, h, tiles, K, TILE, start, BK)
        reads += tl.dot(dread, token_columns(k_ptr, t, there, g, G, K, start, BK).to(tl.float32), input_precision=EXACT)
        q = token_rows(q_ptr, t, there, g, G, K, start, BK).to(tl.float32)
        k = token_rows(k_ptr, t, there, g, G, K, start, BK).to(tl.float32)
        dkeys = head_rows(dkeys_ptr, tile, h, tiles, K, TILE, start, BK)
        dfrom_start += tl.sum(scale * q * dread + k * dkeys, 1)
    dfrom_start -= tl.sum(tl.load(own_ptr + square) * reads, 0)
    summed = tl.cumsum(from_start * dfrom_start, 0, reverse=True) + tl.load(dlog_kept_ptr + h * tiles + tile)
    d_own = tl.load(d_own_ptr + square) - reads * from_start[None, :]
    tl.store(d_own_ptr + square, d_own)

    solved_transposed = tl.load(inverse_ptr + square_at(tile, h, tiles, TILE, True)) * beta[:, None]
    dscores = tl.dot(d_own, solved_transposed, input_precision=EXACT)  # [TILE, TILE] @ [TILE, TILE] -> [TILE, TILE]
    dscores *= scale * tile_decays(log_decay, TILE)
    tl.store(dscores_ptr + square, dscores)
    dscores *= token_products(q_ptr, k_ptr, t, there, g, G, K, TILE, BK, PRECISION)
    tl.store(dlog_decay_ptr + t * H + h, summed + decay_between(dscores, TILE), mask=there)


@triton.jit
def tile_system_backward_kernel(
    q_ptr, k_ptr, log_decay_ptr, beta_ptr, inverse_ptr, d_own_ptr, dwrite_ptr, doverlap_ptr, dlog_decay_ptr, dbeta_ptr,
    sequence_ptr, number_ptr, cu_ptr, tiles, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """From E: d(k . k), dbeta and the rest of dlog_decay"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    g = h // (H // G)
    t, last, there, log_decay, beta = tile_tokens(
        tile, h, log_decay_ptr, beta_ptr, sequence_ptr, number_ptr, cu_ptr, H, TILE
    )
    row = tl.arange(0, TILE)
    square = square_at(tile, h, tiles, TILE, False)

    # dTm, then dX, in place
    scores = token_products(k_ptr, q_ptr, t, there, g, G, K, TILE, BK, PRECISION)
    scores *= scale * tile_decays_transposed(log_decay, TILE)
    solved = tl.dot(scores, tl.load(d_own_ptr + square), input_precision=EXACT)  # [TILE, TILE] @ [TILE, TILE]
    writes = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, K, BK):
        k = token_rows(k_ptr, t, there, g, G, K, start, BK).to(tl.float32)
        writes += tl.dot(k, head_columns(dwrite_ptr, tile, h, tiles, K, TILE, start, BK), input_precision=EXACT)
    writes *= decay_to_end(log_decay_ptr, t, last, h, H)[:, None]
    solved += writes
    inverse = tl.load(inverse_ptr + square)
    dto_end = tl.sum(writes * inverse * beta[None, :], 1)
    summed = tl.cumsum(dto_end, 0) - dto_end
    dbeta = tl.sum(solved * inverse, 0)
    solved *= beta[None, :]

    # dA
    inverse_transposed = tl.load(inverse_ptr + square_at(tile, h, tiles, TILE, True))
    right = tl.dot(solved, inverse_transposed, input_precision=EXACT)  # [TILE, TILE] @ [TILE, TILE] -> [TILE, TILE]
    system = -tl.dot(inverse_transposed, right, input_precision=EXACT)  # [TILE, TILE] @ [TILE, TILE] -> [TILE, TILE]
    system = tl.where(row[:, None] > row[None, :], system * tile_decays(log_decay, TILE), 0.0)
    overlap = token_products(k_ptr, k_ptr, t, there, g, G, K, TILE, BK, PRECISION)
    dbeta += tl.sum(system * overlap, 1)
    system *= beta[:, None]
    tl.store(doverlap_ptr + square, system)
    summed += decay_between(system * overlap, TILE)
    at = dlog_decay_ptr + t * H + h
    tl.store(at, summed + tl.load(at, mask=there, other=0.0), mask=there)
    tl.store(dbeta_ptr + t * H + h, dbeta, mask=there)


@triton.jit
def tile_rows_backward_kernel(
    q_ptr, k_ptr, log_decay_ptr, beta_ptr, inverse_ptr, own_ptr, dread_ptr, dwrite_ptr, dkeys_ptr, dscores_ptr,
    doverlap_ptr, dq_ptr, dk_ptr, sequence_ptr, number_ptr, cu_ptr, tiles, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dq and dk, a block of columns"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    g = h // (H // G)
    start = tl.program_id(2) * BK
    t, last, there, log_decay, beta = tile_tokens(
        tile, h, log_decay_ptr, beta_ptr, sequence_ptr, number_ptr, cu_ptr, H, TILE
    )
    from_start = tl.exp(tl.cumsum(log_decay, 0))
    to_end = decay_to_end(log_decay_ptr, t, last, h, H)
    square = square_at(tile, h, tiles, TILE, False)
    turned = square_at(tile, h, tiles, TILE, True)
    i = start + tl.arange(0, BK)
    at = (t * H + h)[:, None] * K + i[None, :]
    inside = there[:, None] & (i < K)[None, :]

    k = token_rows(k_ptr, t, there, g, G, K, start, BK).to(tl.float32)
    dread = head_rows(dread_ptr, tile, h, tiles, K, TILE, start, BK)
    dq = dread * (scale * from_start)[:, None]
    dq += tl.dot(tl.load(dscores_ptr + square), k, input_precision=EXACT)  # [TILE, TILE] @ [TILE, BK] -> [TILE, BK]
    tl.store(dq_ptr + at, dq.to(dq_ptr.dtype.element_ty), mask=inside)

    dk = head_rows(dkeys_ptr, tile, h, tiles, K, TILE, start, BK)
    dk -= tl.dot(tl.load(own_ptr + turned), dread, input_precision=EXACT)
    dk *= from_start[:, None]
    ending = tl.load(inverse_ptr + square) * beta[None, :] * to_end[:, None]
    dk += tl.dot(ending, head_rows(dwrite_ptr, tile, h, tiles, K, TILE, start, BK), input_precision=EXACT)
    q = token_rows(q_ptr, t, there, g, G, K, start, BK).to(tl.float32)
    dk += tl.dot(tl.load(dscores_ptr + turned), q, input_precision=EXACT)
    both = tl.load(doverlap_ptr + square) + tl.load(doverlap_ptr + turned)
    dk += tl.dot(both, k, input_precision=EXACT)
    tl.store(dk_ptr + at, dk.to(dk_ptr.dtype.element_ty), mask=inside)
