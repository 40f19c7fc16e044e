# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Cumulative log decay inside each chunk, and the gradient of the log decay.

    G_t = sum of log_decay over the chunk's tokens up to t,   exp(G_r - G_t), r the last token of t's tile
    dlog_decay_s = sum_{t >= s} dG_t,   dG_t = q_t . dq_t - k_t . dk_t   (+ dG_end at the chunk's last token)

Because of the second line, no kernel differentiates a decay: with exp(G_t) a factor of the query and exp(-G_j) one of
the key, the derivative with respect to G is the product of each with its own gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.pieces import Pieces, locate


def cumulative_decay(
    log_decay: Tensor | None, heads: int, pieces: Pieces, device: torch.device
) -> tuple[Tensor, Tensor]:
    """G and the decay until the tile's end, `[H, tokens]` float32, for `log_decay` `[tokens, H]`; zeros and ones for None."""
    total = torch.zeros(heads, pieces.tokens, dtype=torch.float32, device=device)
    if log_decay is None:
        return total, torch.ones_like(total)
    until = torch.empty_like(total)
    cumulative_decay_kernel[(pieces.chunks, heads)](
        log_decay, total, until, pieces.chunk_sequence, pieces.chunk_number, pieces.cu, pieces.tokens,
        H=heads, TILE=pieces.tile, LONG=pieces.long, num_warps=2,
    )  # fmt: skip
    return total, until


def decay_backward(qdq: Tensor, kdk: Tensor, ends: Tensor, carry: Tensor, pieces: Pieces, *, has_state: bool) -> Tensor:
    """`[tokens, H]` float32 from q . dq and k . dk `[H, tokens]` and the two halves of dG_end: that of the writes, per
    tile `[tiles, H]`, and that of the states carried `[chunks, H]`. Exactly zero where there was nothing that could
    decay."""
    heads = qdq.shape[0]
    dlog_decay = torch.empty(pieces.tokens, heads, dtype=torch.float32, device=qdq.device)
    decay_backward_kernel[(pieces.chunks, heads)](
        qdq, kdk, ends, carry, dlog_decay, pieces.chunk_sequence, pieces.chunk_number, pieces.cu, pieces.first_tile,
        pieces.tokens, H=heads, TILE=pieces.tile, LONG=pieces.long, HAS_STATE=has_state, num_warps=2,
    )  # fmt: skip
    return dlog_decay


@triton.jit
def cumulative_decay_kernel(
    log_decay_ptr, total_ptr, until_ptr, sequence_ptr, number_ptr, cu_ptr, tokens,
    H: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1).to(tl.int64)
    _, _, first, last = locate(tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, LONG)
    t = first + tl.arange(0, LONG)
    log_decay = tl.load(log_decay_ptr + t * H + h, mask=t < last, other=0.0).to(tl.float32)
    # A decay below e^-104 is zero in float32. Clamped, such a token, even one of -inf, leaves G its digits afterwards.
    log_decay = tl.maximum(log_decay, -104.0)
    total = tl.cumsum(log_decay, 0)
    tl.store(total_ptr + h * tokens + t, total, mask=t < last)
    by_tile = tl.reshape(total, (LONG // TILE, TILE))
    is_end = tl.arange(0, TILE) == TILE - 1
    end = tl.sum(tl.where(is_end[None, :], by_tile, 0.0), 1)
    until = tl.exp(end[:, None] - by_tile)
    tl.store(until_ptr + h * tokens + t, tl.reshape(until, (LONG,)), mask=t < last)


@triton.jit
def decay_backward_kernel(
    qdq_ptr, kdk_ptr, ends_ptr, carry_ptr, dlog_decay_ptr, sequence_ptr, number_ptr, cu_ptr, first_tile_ptr, tokens,
    H: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    n, c, first, last = locate(chunk, sequence_ptr, number_ptr, cu_ptr, LONG)
    TILES: tl.constexpr = LONG // TILE
    first_tile = tl.load(first_tile_ptr + n) + c * TILES
    dend = tl.load(carry_ptr + chunk * H + h)
    for q in range(0, ((last - first + TILE - 1) // TILE).to(tl.int32)):
        dend += tl.load(ends_ptr + (first_tile + q) * H + h)
    t = first + tl.arange(0, LONG)
    dtotal = tl.load(qdq_ptr + h * tokens + t, mask=t < last, other=0.0)
    dtotal -= tl.load(kdk_ptr + h * tokens + t, mask=t < last, other=0.0)
    dtotal += tl.where(t == last - 1, dend, 0.0)
    # sums from each token to the end; padded tokens after the end hold zeros
    dlog_decay = tl.sum(dtotal, 0) - tl.cumsum(dtotal, 0) + dtotal
    if not HAS_STATE:  # all of its terms cancel at a sequence's first token, but for their roundings
        dlog_decay = tl.where((c == 0) & (t == first), 0.0, dlog_decay)
    tl.store(dlog_decay_ptr + t * H + h, dlog_decay, mask=t < last)
