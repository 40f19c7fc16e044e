# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The gradient of gates, `dgate_s = sum over t >= s > j of y[t, j]`: the effect of one more shift of all older tokens.

The pairs with `t >= s > j` are those with `t >= s` but for those with `j >= s`, so from one gate to the next the
gradient grows by a column sum of y less a row sum. (The pair of a token with itself would be in both sums, and is left
out.) For pairs within a chunk, both are sums of the same float32 numbers (weights_backward.py). But terms that cross
chunks are rounded differently in rows and columns, and over a long sequence the errors would add up to more than the
gradient. So the gates of a chunk are counted from what crosses its end, which the states there give:

    sum over t >= s > j of y[t, j] = sum_i <S_i, dS'_i>      at a chunk's first token s, with dS' the adjoint for changes of weights

The difference that the sum still shows at the chunk's first token is spread over the chunk in proportion to the squares
of the terms that cross chunks, which is the most likely split if errors are independent and proportional to what was
rounded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables
from dla_kernels.reader.fused.configs import Tiles, exact_products, inner_block
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.states_layout import end_row, slot_offset, start_row
from dla_kernels.reader.fused.tile_loads import load_tile
from dla_kernels.reader.fused.values import values_of_states
from dla_kernels.reader.fused.within import until_end

NUMBERS = 2048
"""Numbers of a state that a program multiplies at once."""


def columns_of_states(
    u: Tensor, v: Tensor, total: Tensor, adjoint: Tensor, tables: AgeTables, pieces: Pieces, tiles: Tiles
) -> Tensor:
    """The sums of y over the t of later chunks, `v_j . (U_j dS'_a)` `[H, tokens]` float32, with a the slot that j is in
    at the end of its chunk.

    u: `[tokens, G, K]`, from which writes are made; v: `[tokens, H, V]`; adjoint: the second adjoint, see `crossing`.
    """
    (tokens, groups, key_dim), (_, heads, value_dim) = u.shape, v.shape
    blocks_v = triton.cdiv(value_dim, tiles.block_v)
    columns = torch.empty(blocks_v, heads, tokens, dtype=torch.float32, device=v.device)
    columns_of_states_kernel[(pieces.tiles, heads, blocks_v)](
        u, v, total, adjoint, columns, tables.final_token, pieces.tile_sequence, pieces.tile_number, pieces.cu,
        pieces.first_chunk, tokens, H=heads, G=groups, K=key_dim, V=value_dim, M=adjoint.shape[2], TILE=pieces.tile,
        LONG=pieces.long, BK=inner_block(key_dim, tiles), BV=tiles.block_v, EXACT=exact_products(v.dtype), num_warps=tiles.warps,
        num_stages=1,
    )  # fmt: skip
    return columns.sum(0)


def crossing(
    kept: Tensor, adjoint: Tensor, state: Tensor | None, dstate: Tensor | None, tables: AgeTables, pieces: Pieces
) -> Tensor:
    """`sum_i <S_i, dS'_i>` at the start of every chunk, `[H, chunks]` float32.

    kept, adjoint: `[rows, H, M, K, V]`, the states at chunk starts and the second adjoint, which has no row for sequences' ends.
    state, dstate: `[N, H, M, K, V]` float32, the initial states and their second adjoint, or None.
    """
    _, heads, slots, key_dim, value_dim = kept.shape
    parts = torch.zeros(heads, pieces.chunks, slots, dtype=torch.float32, device=kept.device)
    crossing_kernel[(pieces.chunks, heads, slots)](
        kept, adjoint, parts, tables.used, pieces.chunk_sequence, pieces.chunk_number, pieces.chunks,
        H=heads, M=slots, K=key_dim, V=value_dim, NUMBERS=NUMBERS, HAS_STATE=state is not None, num_warps=4, num_stages=1,
    )  # fmt: skip
    crosses = parts.sum(-1)
    if state is not None and dstate is not None:
        crosses[:, pieces.first_chunk[:-1].long()] = torch.linalg.vecdot(state.flatten(2), dstate.flatten(2)).t()
    return crosses


def gate_gradient(steps: Tensor, squares: Tensor, crosses: Tensor, pieces: Pieces) -> Tensor:
    """dgate `[tokens, H]` float32.

    steps: y's row sums less its column sums, squares: the squares of those of their terms that cross chunks, both `[H,
    tokens]`; crosses: what crosses into each chunk, `[H, chunks]`.
    """
    begin = pieces.cu[pieces.chunk_sequence] + pieces.chunk_number.long() * pieces.long
    end = torch.cat((begin[1:], begin.new_full((1,), pieces.tokens)))
    token = torch.arange(pieces.tokens, device=steps.device)
    chunk = torch.searchsorted(begin, token, right=True) - 1
    sums, squares = _sums_to_end(steps), _sums_to_end(squares)
    crosses = crosses.double()
    # what crosses into the next chunk, if that is of the same sequence
    following = torch.where(pieces.chunk_number.roll(-1) > 0, crosses.roll(-1, 1), 0.0)
    from_end = following - sums[:, end]
    missed = crosses - (sums[:, begin] + from_end)
    share = (squares[:, :-1] - squares[:, end[chunk]]) / (squares[:, begin] - squares[:, end])[:, chunk]
    return (sums[:, :-1] + from_end[:, chunk] + missed[:, chunk] * share.nan_to_num(0.0)).t().float()


def _sums_to_end(x: Tensor) -> Tensor:
    """Sums of x `[H, tokens]` from each token to the end, then a 0: `[H, tokens + 1]` float64; a sum over a chunk is a
    difference of two."""
    # over the last dimension, because torch's running sum over any other one goes element by element
    sums = x.flip(1).cumsum(1, dtype=torch.float64).flip(1)
    return torch.cat((sums, torch.zeros_like(sums[:, :1])), 1)


@triton.jit
def columns_of_states_kernel(
    u_ptr, v_ptr, total_ptr, dhigh_ptr, columns_ptr, final_token_ptr, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr,
    tokens,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr,
    LONG: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """v_j . U_j dS'_{final_token[j]} over a block of V; 0 in a sequence's last chunk"""
    h = tl.program_id(1).to(tl.int64)
    n, chunk, _, _, chunk_first, first, last = locate_tile(
        tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    row = tl.arange(0, TILE)
    rows = (last - first).to(tl.int32)
    stop = tl.load(cu_ptr + n + 1)
    chunk_last = tl.minimum(chunk_first + LONG, stop)
    row_v = tl.program_id(2) * BV + tl.arange(0, BV)
    columns = tl.zeros((TILE,), tl.float32)
    end = tl.load(total_ptr + h * tokens + last - 1)
    if chunk_last < stop:
        dv = values_of_states(
            u_ptr, total_ptr, dhigh_ptr, final_token_ptr, tokens, h, h // (H // G), end_row(chunk, n, False), first, last,
            chunk_last, end, row_v, H, G, K, V, M, TILE, BK, EXACT,
        )  # fmt: skip
        columns = tl.sum(load_tile(v_ptr + h * V, first, rows, row_v, H * V, V, TILE).to(tl.float32) * dv, 1)
        columns *= until_end(total_ptr + h * tokens, first, rows, end, TILE)
    tl.store(columns_ptr + (tl.program_id(2) * H + h) * tokens + first + row, columns, mask=row < rows)


@triton.jit
def crossing_kernel(
    high_ptr, dhigh_ptr, parts_ptr, used_ptr, sequence_ptr, number_ptr, chunks,
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
        tl.store(parts_ptr + (h * chunks + chunk) * M + i, tl.sum(acc))
