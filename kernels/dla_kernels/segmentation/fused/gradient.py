# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The gradient that a straight-through gate sends through the score, with the open segment taken as constant.

    dI/dk_t = -(S v_t / (|k_t| |v_t| |S|) - cos_t k_t / |k_t|^2) / I_t,      dI/dv_t likewise with S^T k_t

S v_t is linear attention whose state begins anew at every boundary. The boundaries are known by now, so one pass,
parallel over blocks of K x V, gives the states at chunk starts, and then all chunks are processed in parallel. Products
take k, v and the states in the type of k and v: gradients, unlike decisions, may be rounded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.configs import exact_products
from dla_kernels.reader.fused.pieces import Pieces, locate
from dla_kernels.segmentation.fused.paths import products

SMALLEST_SCORE = 1e-3
"""As in segmentation/scan.py: `dI/dcos = -1/I` has a pole where a token repeats the open segment."""


def score_gradients(
    k: Tensor, v: Tensor, shift: Tensor, score: Tensor, norm: Tensor, dscore: Tensor, open_sum: Tensor, pieces: Pieces,
    block_k: int, block_v: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dk `[tokens, H, K]` per head and dv `[tokens, H, V]`, in the types of k and v.

    k `[tokens, G, K]`, v `[tokens, H, V]`; shift, score, norm (|S|^2 before the token) and dscore `[tokens, H]`; open_sum
    `[N, H, K, V]` float32 before the first tokens.
    """
    (tokens, groups, key_dim), (_, heads, value_dim) = k.shape, v.shape
    dk, dv = k.new_empty(tokens, heads, key_dim), torch.empty_like(v)
    k_norm = torch.linalg.vector_norm(k, dim=-1, dtype=torch.float32).repeat_interleave(heads // groups, 1)
    v_norm = torch.linalg.vector_norm(v, dim=-1, dtype=torch.float32)
    slope = -dscore / score.clamp(min=SMALLEST_SCORE)
    defined = (k_norm > 0) & (v_norm > 0) & (norm > 0)
    slope = torch.where(defined, slope, 0.0)
    k_norm, v_norm, norm = (torch.where(defined, x, 1.0) for x in (k_norm, v_norm, norm))
    pull = slope / k_norm / v_norm * norm.rsqrt()  # one by one: their product may be beyond float32
    push = slope * (1.0 - score.square() / 2.0)  # the cosine, from the score
    push_k, push_v = push / k_norm / k_norm, push / v_norm / v_norm
    boundary = (shift != -1).to(torch.uint8)

    dtype = torch.promote_types(k.dtype, v.dtype)
    k, v = k.to(dtype), v.to(dtype)
    states = torch.empty(pieces.tiles, heads, key_dim, value_dim, dtype=dtype, device=k.device)
    blocks_k, blocks_v = triton.cdiv(key_dim, block_k), triton.cdiv(value_dim, block_v)
    open_sums_kernel[(pieces.sequences * heads, blocks_k, blocks_v)](
        k, v, boundary, open_sum, states, pieces.cu, pieces.first_tile,
        H=heads, G=groups, K=key_dim, V=value_dim, C=pieces.tile, BK=block_k, BV=block_v, PRECISION="ieee", num_warps=4,
    )  # fmt: skip
    where = pieces.tile_sequence, pieces.tile_number, pieces.cu
    score_gradient_kernel[(pieces.tiles, heads, blocks_k)](
        k, v, boundary, states, pull.contiguous(), push_k.contiguous(), dk, *where,
        H=heads, GX=groups, GY=heads, DX=key_dim, DY=value_dim, STRIDE_X=value_dim, STRIDE_Y=1, C=pieces.tile,
        BX=block_k, BY=block_v, PRECISION="ieee", EXACT=exact_products(dtype), num_warps=4,
    )  # fmt: skip
    score_gradient_kernel[(pieces.tiles, heads, blocks_v)](
        v, k, boundary, states, pull.contiguous(), push_v.contiguous(), dv, *where,
        H=heads, GX=heads, GY=groups, DX=value_dim, DY=key_dim, STRIDE_X=1, STRIDE_Y=value_dim, C=pieces.tile,
        BX=block_v, BY=block_k, PRECISION="ieee", EXACT=exact_products(dtype), num_warps=4,
    )  # fmt: skip
    return dk, dv


@triton.jit
def open_sums_kernel(
    k_ptr, v_ptr, boundary_ptr, open_ptr, states_ptr, cu_ptr, first_tile_ptr,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sum over the open segment at the start of every chunk, one block of K x V"""
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    g = h // (H // G)
    i = tl.program_id(1) * BK + tl.arange(0, BK)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    inside = (i < K)[:, None] & (j < V)[None, :]
    block = i[:, None] * V + j[None, :]
    begin = tl.load(cu_ptr + n)
    stop = tl.load(cu_ptr + n + 1)
    first_tile = tl.load(first_tile_ptr + n)
    row = tl.arange(0, C)
    s = tl.load(open_ptr + (n * H + h) * (K * V) + block, mask=inside, other=0.0)
    # which tokens open a segment is known a chunk ahead, and no load waits for it
    boundary = tl.load(boundary_ptr + (begin + row) * H + h, mask=begin + row < stop, other=0).to(tl.int32)
    for c in range(0, tl.load(first_tile_ptr + n + 1) - first_tile):
        tl.store(
            states_ptr + ((first_tile + c).to(tl.int64) * H + h) * (K * V) + block,
            s.to(k_ptr.dtype.element_ty),
            mask=inside,
        )
        t = begin + c * C + row
        there = t < stop
        key = tl.load(k_ptr + (t * G + g)[None, :] * K + i[:, None], mask=there[None, :] & (i < K)[:, None], other=0.0)
        v = tl.load(v_ptr + (t * H + h)[:, None] * V + j[None, :], mask=there[:, None] & (j < V)[None, :], other=0.0)
        following = tl.load(boundary_ptr + (t + C) * H + h, mask=t + C < stop, other=0).to(tl.int32)
        last = tl.max(tl.where(boundary > 0, row, -1))
        v = tl.where((row >= last)[:, None], v, 0.0)
        boundary = following
        s = s * tl.where(last >= 0, 0.0, 1.0)
        s += tl.dot(key, v, input_precision=PRECISION)  # [BK, C] @ [C, BV] -> [BK, BV]


@triton.jit
def score_gradient_kernel(
    x_ptr, y_ptr, boundary_ptr, states_ptr, pull_ptr, push_ptr, dx_ptr, sequence_ptr, number_ptr, cu_ptr,
    H: tl.constexpr, GX: tl.constexpr, GY: tl.constexpr, DX: tl.constexpr, DY: tl.constexpr, STRIDE_X: tl.constexpr,
    STRIDE_Y: tl.constexpr, C: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """dx_t = pull_t S y_t - push_t x_t, with x the keys and y the values or the other way around; in the type of dx"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    x_group = h // (H // GX)
    y_group = h // (H // GY)
    _, _, first, last = locate(tile, sequence_ptr, number_ptr, cu_ptr, C)
    row = tl.arange(0, C)
    t = first + row
    there = t < last
    i = tl.program_id(2) * BX + tl.arange(0, BX)
    inside = there[:, None] & (i < DX)[None, :]
    boundary = tl.load(boundary_ptr + t * H + h, mask=there, other=0).to(tl.int32)
    segment = tl.cumsum(boundary, 0)
    looks_at = segment - boundary  # the segment that was open before token t

    x = tl.load(x_ptr + (t * GX + x_group)[:, None] * DX + i[None, :], mask=inside, other=0.0)
    pairs = products(y_ptr, y_group, t, last, t, last, GY, DY, C, BY, PRECISION)
    member = (looks_at[:, None] == segment[None, :]) & (row[None, :] < row[:, None])
    acc = tl.dot(tl.where(member, pairs, 0.0).to(x.dtype), x, input_precision=EXACT)  # [C, C] @ [C, BX] -> [C, BX]
    carried = there & (looks_at == 0)
    base = (tile.to(tl.int64) * H + h) * (DX * DY)
    for start in range(0, DY, BY):
        j = start + tl.arange(0, BY)
        y = tl.load(
            y_ptr + (t * GY + y_group)[:, None] * DY + j[None, :], mask=carried[:, None] & (j < DY)[None, :], other=0.0
        )
        s = tl.load(
            states_ptr + base + i[None, :] * STRIDE_X + j[:, None] * STRIDE_Y,
            mask=(i < DX)[None, :] & (j < DY)[:, None],
            other=0.0,
        )
        acc += tl.dot(y, s, input_precision=EXACT)  # [C, BY] @ [BY, BX] -> [C, BX]
    pull = tl.load(pull_ptr + t * H + h, mask=there, other=0.0)
    push = tl.load(push_ptr + t * H + h, mask=there, other=0.0)
    dx = pull[:, None] * acc - push[:, None] * x.to(tl.float32)
    tl.store(dx_ptr + (t * H + h)[:, None] * DX + i[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)
