# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Scores and boundaries (eqs. 13 to 15): which tokens open a segment.

`cos_t = k_t^T S v_t / (|k_t| |v_t| |S|)` with S the sum over the open segment. Inside a chunk S is not needed: with the Gram
matrix `A[t, j] = (k_t . k_j)(v_t . v_j)`, `k_t^T S v_t` is what S at the chunk's start gives plus the sum of `A[t, j]` over the
open segment's tokens. If no boundary came, the scores of all remaining tokens would follow at once; so do that, take the
first boundary, and begin again after it: a chunk costs as many rounds as it has boundaries, plus one.

Everything is float32 and IEEE, since a decision must not depend on the backend.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.pieces import Pieces


def score_tokens(
    k: Tensor, v: Tensor, threshold: Tensor, open_sum: Tensor, count: Tensor, pieces: Pieces, block_k: int, block_v: int
) -> tuple[Tensor, Tensor, Tensor]:
    """score, |S|^2 before the token (both float32) and boundary (uint8), all `[H, tokens]`.

    k `[tokens, G, K]`, v `[tokens, H, V]`, threshold `[H]`; open_sum `[N, H, K, V]` float32 becomes the sum at the end, in
    place; count `[N, H, M]` says which sequences go on.
    """
    (tokens, groups, key_dim), (_, heads, value_dim) = k.shape, v.shape
    score = torch.empty(heads, tokens, dtype=torch.float32, device=k.device)
    norm = torch.empty_like(score)
    boundary = torch.empty(heads, tokens, dtype=torch.uint8, device=k.device)
    score_tokens_kernel[(pieces.sequences * heads,)](
        k, v, threshold, open_sum, count, score, norm, boundary, pieces.cu, tokens,
        H=heads, G=groups, K=key_dim, V=value_dim, M=count.shape[-1], C=pieces.tile, BK=block_k, BV=block_v,
        PRECISION="ieee", num_warps=4,
    )  # fmt: skip
    return score, norm, boundary


@triton.jit
def gram(
    x_ptr, x, group, t, last, GROUPS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`x_t . x_j` in a chunk, `[C, C]`; x + their products."""
    for start in range(0, D, BLOCK):
        i = start + tl.arange(0, BLOCK)
        offset = (t * GROUPS + group) * D
        rows = tl.load(x_ptr + offset[:, None] + i[None, :], mask=(t < last)[:, None] & (i < D)[None, :], other=0.0)
        columns = tl.load(x_ptr + offset[None, :] + i[:, None], mask=(t < last)[None, :] & (i < D)[:, None], other=0.0)
        x += tl.dot(rows.to(tl.float32), columns.to(tl.float32), input_precision=PRECISION)  # [C, BLOCK] @ [BLOCK, C]
    return x


@triton.jit
def score_tokens_kernel(
    k_ptr, v_ptr, threshold_ptr, open_ptr, count_ptr, score_ptr, norm_ptr, boundary_ptr, cu_ptr, tokens,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """I_t = sqrt(2 - 2 cos_t), boundary where I_t >= tau; one program per sequence and head"""
    ORTHOGONAL: tl.constexpr = 1.4142135623730951  # pyright: ignore[reportAssignmentType]
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    g = h // (H // G)
    begin = tl.load(cu_ptr + n)
    stop = tl.load(cu_ptr + n + 1)
    threshold = tl.load(threshold_ptr + h)
    fresh = tl.load(count_ptr + (n * H + h) * M) == 0  # nothing is open: the first token has no score
    at = (n * H + h) * (K * V)
    row = tl.arange(0, C)

    norm_open = 0.0
    for k0 in range(0, K, BK):
        i = k0 + tl.arange(0, BK)
        for v0 in range(0, V, BV):
            j = v0 + tl.arange(0, BV)
            mask = (i < K)[:, None] & (j < V)[None, :]
            s = tl.load(open_ptr + at + i[:, None] * V + j[None, :], mask=mask, other=0.0)
            norm_open += tl.sum(s * s)

    for c in range(0, ((stop - begin + C - 1) // C).to(tl.int32)):
        first = begin + c * C
        t = first + row
        there = t < stop

        # with the sum that the chunk begins with: diag(K S V^T)
        carried = tl.zeros((C,), tl.float32)
        for v0 in range(0, V, BV):
            j = v0 + tl.arange(0, BV)
            seen = tl.zeros((C, BV), tl.float32)
            for k0 in range(0, K, BK):
                i = k0 + tl.arange(0, BK)
                key = tl.load(
                    k_ptr + (t * G + g)[:, None] * K + i[None, :], mask=there[:, None] & (i < K)[None, :], other=0.0
                )
                mask = (i < K)[:, None] & (j < V)[None, :]
                s = tl.load(open_ptr + at + i[:, None] * V + j[None, :], mask=mask, other=0.0)
                seen += tl.dot(key.to(tl.float32), s, input_precision=PRECISION)  # [C, BK] @ [BK, BV] -> [C, BV]
            v = tl.load(
                v_ptr + (t * H + h)[:, None] * V + j[None, :], mask=there[:, None] & (j < V)[None, :], other=0.0
            )
            carried += tl.sum(seen * v.to(tl.float32), 1)
        pairs = gram(k_ptr, tl.zeros((C, C), tl.float32), g, t, stop, G, K, C, BK, PRECISION)
        pairs *= gram(v_ptr, tl.zeros((C, C), tl.float32), h, t, stop, H, V, C, BV, PRECISION)
        own = tl.sum(tl.where(row[:, None] == row[None, :], pairs, 0.0), 1)  # |k_t|^2 |v_t|^2

        score = tl.zeros((C,), tl.float32)
        norm = tl.zeros((C,), tl.float32)
        opens = tl.zeros((C,), tl.int32)
        segment = 0  # where the open segment begins, if it begins in this chunk
        seen_to = -1  # the last token that has a score
        norm_before = norm_open
        while seen_to < C - 1:
            older = (row[None, :] >= segment) & (row[None, :] < row[:, None])
            dots = carried + tl.sum(tl.where(older, pairs, 0.0), 1)
            grows = tl.where(there & (row >= segment), 2.0 * dots + own, 0.0)
            norms = norm_before + tl.cumsum(grows, 0) - grows
            defined = (own > 0.0) & (norms > 0.0)
            cosine = dots * tl.rsqrt(tl.where(defined, own * norms, 1.0))
            information = tl.where(defined, tl.sqrt(tl.maximum(2.0 - 2.0 * cosine, 0.0)), ORTHOGONAL)
            information = tl.where(fresh & (row == 0), 0.0, information)
            hit = there & (row > seen_to) & (information >= threshold) & ~(fresh & (row == 0))
            if M == 1:
                hit = row < 0
            boundary = tl.min(tl.where(hit, row, C))
            new = (row > seen_to) & (row <= boundary)
            score = tl.where(new, information, score)
            norm = tl.where(new, norms, norm)
            opens = tl.where(row == boundary, 1, opens)
            seen_to = tl.minimum(boundary, C - 1)
            if boundary < C:
                segment = boundary
                norm_before = 0.0
                carried = tl.zeros((C,), tl.float32)
        tl.store(score_ptr + h * tokens + t, score, mask=there)
        tl.store(norm_ptr + h * tokens + t, norm, mask=there)
        tl.store(boundary_ptr + h * tokens + t, opens.to(tl.uint8), mask=there)

        # the sum that the next chunk begins with
        keep = tl.where(tl.max(opens) > 0, 0.0, 1.0)
        member = there & (row >= segment)
        norm_open = 0.0
        tl.debug_barrier()
        for k0 in range(0, K, BK):
            i = k0 + tl.arange(0, BK)
            key = tl.load(
                k_ptr + (t * G + g)[None, :] * K + i[:, None], mask=member[None, :] & (i < K)[:, None], other=0.0
            )
            for v0 in range(0, V, BV):
                j = v0 + tl.arange(0, BV)
                v = tl.load(
                    v_ptr + (t * H + h)[:, None] * V + j[None, :], mask=there[:, None] & (j < V)[None, :], other=0.0
                )
                mask = (i < K)[:, None] & (j < V)[None, :]
                s = keep * tl.load(open_ptr + at + i[:, None] * V + j[None, :], mask=mask, other=0.0)
                s += tl.dot(
                    key.to(tl.float32), v.to(tl.float32), input_precision=PRECISION
                )  # [BK, C] @ [C, BV] -> [BK, BV]
                tl.store(open_ptr + at + i[:, None] * V + j[None, :], s, mask=mask)
                norm_open += tl.sum(s * s)
        tl.debug_barrier()
        fresh = fresh & False
