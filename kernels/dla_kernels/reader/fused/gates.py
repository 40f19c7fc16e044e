# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The gradient of gates, `dgate_s = sum over t >= s > j of y[t, j]`: what one more shift of all older tokens would change.

As `t >= s > j` is the difference of `t >= s` and `j >= s`, it grows from gate to gate by a column sum less a row sum (that of a
token with itself is in both, and left out of both). These are rounded differently, and over a long sequence the errors would
add up to more than the gradient. So a chunk's gates count from what crosses its end, which the states there tell:

    sum over t >= s > j of y[t, j] = sum_i <S_i, dS'_i>      at a chunk's first token s, with dS' the adjoint for changes of weights

and what the sum misses when it comes to the chunk's first token is spread over the chunk.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.states_layout import end_row, slot_offset, start_row

NUMBERS = 2048
"""Of a state that a program multiplies at one time."""


def crossing(kept: Tensor, adjoint: Tensor, tables: AgeTables, pieces: Pieces, *, has_state: bool) -> Tensor:
    """`sum_i <S_i, dS'_i>` at the start of every chunk, `[chunks, H]` float32; 0 for a sequence's first.

    kept, adjoint: `[rows, H, M, K, V]`, the states at chunk starts and the second adjoint, which has no row for sequences' ends.
    """
    _, heads, slots, key_dim, value_dim = kept.shape
    parts = torch.zeros(pieces.chunks, heads, slots, dtype=torch.float32, device=kept.device)
    crossing_kernel[(pieces.chunks, heads, slots)](
        kept, adjoint, parts, tables.used, pieces.chunk_sequence, pieces.chunk_number,
        H=heads, M=slots, K=key_dim, V=value_dim, NUMBERS=NUMBERS, HAS_STATE=has_state, num_warps=4, num_stages=1,
    )  # fmt: skip
    return parts.sum(-1)


def gate_gradient(rows: Tensor, columns: Tensor, crosses: Tensor, pieces: Pieces, *, has_state: bool) -> Tensor:
    """dgate `[tokens, H]` float32 of row and column sums `[tokens, H]` and what crosses into chunks `[chunks, H]`.

    has_state: something crosses into the first chunks of sequences, too, which nobody has counted.
    """
    begin = pieces.cu[pieces.chunk_sequence] + pieces.chunk_number.long() * pieces.long
    token = torch.arange(pieces.tokens, device=rows.device)
    chunk = torch.searchsorted(begin, token, right=True) - 1
    end = torch.cat((begin[1:], begin.new_full((1,), pieces.tokens)))
    # over the last dimension: torch's sum over any other one waits for each element; float64: chunks are differences
    sums = (rows - columns).t().flip(1).cumsum(1, dtype=torch.float64).flip(1)
    sums = torch.cat((sums, torch.zeros_like(sums[:, :1])), 1)
    crosses = crosses.t().double()
    following = torch.cat((crosses[:, 1:], torch.zeros_like(crosses[:, :1])), 1)  # 0 where that is another sequence
    from_end = following - sums[:, end]
    missed = crosses - (sums[:, begin] + from_end)
    if has_state:
        missed = torch.where(pieces.chunk_number > 0, missed, 0.0)
    share = (end[chunk] - token) / (end - begin)[chunk]
    return (sums[:, :-1] + from_end[:, chunk] + missed[:, chunk] * share).t().float()


@triton.jit
def crossing_kernel(
    high_ptr, dhigh_ptr, parts_ptr, used_ptr, sequence_ptr, number_ptr,
    H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, V: tl.constexpr, NUMBERS: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """<S_i, dS'_i> at the start of a chunk"""
    chunk = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    i = tl.program_id(2)
    n = tl.load(sequence_ptr + chunk)
    if (tl.load(number_ptr + chunk) > 0) & (i < tl.load(used_ptr + chunk * H + h)):
        high_ptr += slot_offset(start_row(chunk, n, HAS_STATE), h, i, H, M, K, V)
        dhigh_ptr += slot_offset(end_row(chunk - 1, n, False), h, i, H, M, K, V)
        acc = tl.zeros((NUMBERS,), tl.float32)
        for start in range(0, K * V, NUMBERS):
            at = start + tl.arange(0, NUMBERS)
            state = tl.load(high_ptr + at, mask=at < K * V, other=0.0).to(tl.float32)
            acc += state * tl.load(dhigh_ptr + at, mask=at < K * V, other=0.0).to(tl.float32)
        tl.store(parts_ptr + (chunk.to(tl.int64) * H + h) * M + i, tl.sum(acc))
