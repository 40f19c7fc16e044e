# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Scores and boundaries (eqs. 13 to 15): which tokens open a segment.

A chunk's decisions depend on earlier chunks only up to its first boundary, and up to there only through the token at
which the open segment began. So all chunks in parallel compute what would follow from every such token, in this chunk
(paths.py) and in the previous one (across.py); then one program per sequence and head goes from chunk to chunk and
looks up which of them it is; then all chunks in parallel do the rest (boundaries.py).

Only a segment longer than a whole chunk gets a state S, for `k_t^T S v_t`. Decisions are made in float32, and nothing
in them is rounded further, because they must not depend on the backend.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.configs import Tiles, factors_in_registers, registers_by_rule
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.segmentation.fused.across import entries_kernel
from dla_kernels.segmentation.fused.boundaries import boundaries_kernel
from dla_kernels.segmentation.fused.paths import chunk_paths_kernel, information
from dla_kernels.segmentation.fused.segments import Segments


def score_tokens(
    k: Tensor, v: Tensor, threshold: Tensor, open_sum: Tensor, count: Tensor, pieces: Pieces, tiles: Tiles
) -> tuple[Tensor, Tensor, Tensor, Segments]:
    """score and |S|^2 before the token, both float32, and shift, int32 and all -1, each `[tokens, H]`; and the
    segments.

    k `[tokens, G, K]`, v `[tokens, H, V]`, threshold `[H]`; open_sum `[N, H, K, V]` float32 is updated in place to the
    sum at the end; count `[N, H, M]` tells which sequences continue earlier ones.
    """
    (tokens, groups, key_dim), (_, heads, value_dim) = k.shape, v.shape
    dtype = torch.promote_types(k.dtype, v.dtype)
    k, v = k.to(dtype), v.to(dtype)
    size = pieces.tile
    assert size <= 64, size  # boundaries.py has one bit for each token

    def by_tile(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(pieces.tiles, heads, *shape, dtype=dtype, device=k.device)

    reached, final = by_tile(size, dtype=torch.int64), by_tile(size, dtype=torch.uint8)
    entries, norm_end, own = by_tile(size, dtype=torch.int32), by_tile(size), by_tile(size)
    dots, across = by_tile(size, size), by_tile(size, size)
    entry, origin = by_tile(dtype=torch.int32), by_tile(dtype=torch.int32)
    score = torch.empty(tokens, heads, dtype=torch.float32, device=k.device)
    squared, shift = torch.empty_like(score), torch.empty_like(score, dtype=torch.int32)
    segments = Segments.empty(pieces, heads, k.device)
    where = pieces.tile_sequence, pieces.tile_number, pieces.cu
    sizes = {"H": heads, "G": groups, "K": key_dim, "V": value_dim, "M": count.shape[-1], "C": size}
    sizes |= {"BK": tiles.block_k, "BV": tiles.block_v, "num_warps": 4}
    limits = replace(tiles, registers=registers_by_rule(dtype, k.device)).limits()
    sums = "ieee" if torch.version.hip is not None else "tf32"  # of parts of eight bits (running_sums.py)
    chunk_paths_kernel[(pieces.tiles, heads)](
        k, v, threshold, reached, final, norm_end, dots, own, *where,
        STEPS=(size - 1).bit_length(), PRECISION="ieee", SUMS=sums, **sizes, **limits,
    )  # fmt: skip
    entries_kernel[(pieces.tiles, heads)](
        k, v, threshold, norm_end, dots, own, final, across, entries, *where,
        PRECISION="ieee", SUMS=sums, **sizes, **limits,
    )  # fmt: skip
    # the open sum is float32, while k and v have 16 bits: three tf32 products are as accurate as one of float32
    exact = "ieee" if dtype == torch.float32 or torch.version.hip is not None else "tf32x3"
    # if tensor cores take factors from registers, its blocks are as small as those of a float32 product
    block_of_sum = min(tiles.block_k, 32) if factors_in_registers(k.device) else tiles.block_k
    first_boundaries_kernel[(pieces.sequences * heads,)](
        k, v, threshold, open_sum, count, final, entries, dots, own, entry, origin, score, squared, pieces.cu,
        pieces.first_tile, PRECISION=exact, **sizes | {"BK": block_of_sum},
    )  # fmt: skip
    boundaries_kernel[(pieces.tiles, heads)](
        reached, norm_end, dots, own, across, entry, origin, score, squared, shift,
        segments.opened, segments.carried, segments.position, segments.sums, *where,
        H=heads, M=count.shape[-1], C=size, num_warps=1,
    )  # fmt: skip
    return score, squared, shift, segments


@triton.jit
def seen_by_sum(
    k_ptr, v_ptr, open_ptr, h, g, t, last, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`diag(K S V^T)` `[C]` with the open sum S."""
    there = t < last
    dots = tl.zeros((C,), tl.float32)
    for v0 in range(0, V, BV):
        j = v0 + tl.arange(0, BV)
        seen = tl.zeros((C, BV), tl.float32)
        for k0 in range(0, K, BK):
            i = k0 + tl.arange(0, BK)
            key = tl.load(
                k_ptr + (t * G + g)[:, None] * K + i[None, :], mask=there[:, None] & (i < K)[None, :], other=0.0
            )
            s = tl.load(open_ptr + i[:, None] * V + j[None, :], mask=(i < K)[:, None] & (j < V)[None, :], other=0.0)
            seen += tl.dot(key.to(tl.float32), s, input_precision=PRECISION)  # [C, BK] @ [BK, BV] -> [C, BV]
        v = tl.load(v_ptr + (t * H + h)[:, None] * V + j[None, :], mask=there[:, None] & (j < V)[None, :], other=0.0)
        dots += tl.sum(seen * v.to(tl.float32), 1)
    return dots


@triton.jit
def add_tokens(
    k_ptr, v_ptr, open_ptr, keep, h, g, t, member, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """S = keep S + the sum of `k_t v_t^T` over the member tokens; returns |S|^2."""
    norm = 0.0
    for k0 in range(0, K, BK):
        i = k0 + tl.arange(0, BK)
        key = tl.load(k_ptr + (t * G + g)[None, :] * K + i[:, None], mask=member[None, :] & (i < K)[:, None], other=0.0)
        for v0 in range(0, V, BV):
            j = v0 + tl.arange(0, BV)
            v = tl.load(
                v_ptr + (t * H + h)[:, None] * V + j[None, :], mask=member[:, None] & (j < V)[None, :], other=0.0
            )
            mask = (i < K)[:, None] & (j < V)[None, :]
            s = keep * tl.load(open_ptr + i[:, None] * V + j[None, :], mask=mask, other=0.0)
            s += tl.dot(key, v, input_precision="ieee")  # [BK, C] @ [C, BV] -> [BK, BV]
            tl.store(open_ptr + i[:, None] * V + j[None, :], s, mask=mask)
            norm += tl.sum(s * s)
    tl.debug_barrier()
    return norm


@triton.jit
def first_boundaries_kernel(
    k_ptr, v_ptr, threshold_ptr, open_ptr, count_ptr, final_ptr, entries_ptr, dots_ptr, own_ptr, entry_ptr, origin_ptr,
    score_ptr, squared_ptr, cu_ptr, first_tile_ptr,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The first boundary of each chunk (C if none), and where the segment that is open before it began: a token of the
    previous chunk, or else -1, in which case the scores up to that boundary are stored, too. One program per sequence
    and head."""
    n = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    g = h // (H // G)
    begin = tl.load(cu_ptr + n)
    stop = tl.load(cu_ptr + n + 1)
    first_tile = tl.load(first_tile_ptr + n).to(tl.int64)
    threshold = tl.load(threshold_ptr + h)
    fresh = tl.load(count_ptr + (n * H + h) * M) == 0  # nothing is open: the first token has no score
    open_ptr += (n * H + h) * (K * V)
    row = tl.arange(0, C)

    # either the open segment is summed up in S, or it began at token `origin` of the chunk before
    summed = 1 - fresh.to(tl.int32)
    origin = -1
    norm = 0.0
    if summed > 0:
        norm = add_tokens(k_ptr, v_ptr, open_ptr, 1.0, h, g, begin + row, row < 0, H, G, K, V, BK, BV)
    chunks = ((stop - begin + C - 1) // C).to(tl.int32)
    # the entries to look up are loaded two chunks ahead, as nothing else would be waited for
    entries = row * 0
    next_entries = tl.load(entries_ptr + ((first_tile + 1) * H + h) * C + row, mask=1 < chunks, other=0)
    for c in range(0, chunks):
        t = begin + c * C + row
        after_next = tl.load(entries_ptr + ((first_tile + c + 2) * H + h) * C + row, mask=c + 2 < chunks, other=0)
        there = t < stop
        chunk = (first_tile + c) * H + h
        entry = c * 0
        onward = c * 0
        if summed > 0:
            own = tl.load(own_ptr + chunk * C + row)
            dots = tl.load(dots_ptr + chunk * (C * C) + row)
            dots += seen_by_sum(k_ptr, v_ptr, open_ptr, h, g, t, stop, H, G, K, V, C, BK, BV, PRECISION)
            grows = tl.where(there, 2.0 * dots + own, 0.0)
            norms = norm + tl.cumsum(grows, 0) - grows
            score = information(dots, norms, own)
            if M == 1:
                entry += C
            else:
                entry = tl.min(tl.where(there & (score >= threshold), row, C))
            onward = tl.load(final_ptr + chunk * C + entry, mask=entry < C, other=0).to(tl.int32)
            tl.store(score_ptr + t * H + h, score, mask=there & (row <= entry))
            tl.store(squared_ptr + t * H + h, norms, mask=there & (row <= entry))
        elif c == 0:  # a segment begins, at the first token
            onward = tl.load(final_ptr + chunk * C).to(tl.int32)
            tl.store(score_ptr + t * H + h, row * 0.0, mask=row == 0)
            tl.store(squared_ptr + t * H + h, row * 0.0, mask=row == 0)
        else:
            known = tl.sum(tl.where(row == origin, entries, 0))
            entry = known % 256
            onward = known // 256
        tl.store(entry_ptr + chunk, entry)
        tl.store(origin_ptr + chunk, origin)
        if entry < C:
            origin = onward
            summed = 0
        else:
            if summed == 0:
                add_tokens(k_ptr, v_ptr, open_ptr, 0.0, h, g, t - C, row >= origin, H, G, K, V, BK, BV)
            norm = add_tokens(k_ptr, v_ptr, open_ptr, 1.0, h, g, t, there, H, G, K, V, BK, BV)
            origin = -1
            summed = 1
        entries, next_entries = next_entries, after_next
    if summed == 0:
        t = begin + (chunks - 1) * C + row
        add_tokens(k_ptr, v_ptr, open_ptr, 0.0, h, g, t, (t < stop) & (row >= origin), H, G, K, V, BK, BV)
