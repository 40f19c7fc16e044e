# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The effect of one tile's tokens on a state, for the delta rule: solves the triangular system of each tile.

With G and D = exp(G_t - G_j) within the tile, A = strict_lower(beta_t (k_t . k_j) D), X = (I + A)^-1 and Tm = X diag(beta):

    K = exp(G) k     N = scale (q_t . k_j) D     Mx = N Tm     Qe = scale exp(G) q - Mx K     U = (exp(G_end - G) Tm)^T k

X is not computed by blocks or as a series, whose terms may grow beyond what float32 holds, but row by row: row j of X
is final once the rows before it have been eliminated, and is then eliminated from the rows after it. Everything but q .
k and k . k is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.configs import exact_products
from dla_kernels.reader.fused.pieces import Pieces, locate


@dataclass(frozen=True, kw_only=True)
class SolvedTiles:
    """The results for every tile and head, with zeros for missing tokens; float32, but factor and keys in the products'
    type.

    Attributes:
        inverse, own: X and Mx `[H, tiles, TILE, TILE]`.
        read, write, factor, keys: Qe, U, U rounded, K `[H, tiles TILE, K]`.
        log_kept: G of the tile's last token, `[H, tiles]`.
    """

    inverse: Tensor
    own: Tensor
    read: Tensor
    write: Tensor
    factor: Tensor
    keys: Tensor
    log_kept: Tensor


def solve_tiles(
    q: Tensor, k: Tensor, log_decay: Tensor, beta: Tensor, scale: float, pieces: Pieces, block: int
) -> SolvedTiles:
    """q, k `[tokens, G, K]`; log_decay, beta `[tokens, H]`; block: the part of K that one product takes."""
    heads, tile, key_dim = beta.shape[1], pieces.tile, k.shape[2]
    squares = heads, pieces.tiles, tile, tile
    rows = heads, pieces.tiles * tile, key_dim

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=k.device)

    inverse, own = empty(*squares), empty(*squares)
    read, write, keys = empty(*rows), empty(*rows), empty(*rows, dtype=k.dtype)
    log_kept = empty(heads, pieces.tiles)
    grid, where, sizes = (pieces.tiles, heads), tiles_of(pieces), sizes_of(k, heads, pieces, block)
    invert_tiles_kernel[grid](k, log_decay, beta, inverse, log_kept, *where, **sizes)
    tile_rows_kernel[grid](q, k, log_decay, beta, inverse, own, read, write, keys, *where, scale, **sizes)
    # rounded here: the kernel would spill for it
    factor = write.to(k.dtype)
    return SolvedTiles(inverse=inverse, own=own, read=read, write=write, factor=factor, keys=keys, log_kept=log_kept)


def tiles_of(pieces: Pieces) -> tuple[Tensor, Tensor, Tensor, int]:
    """The arguments by which the kernels of this stage locate tiles, and the number of tiles."""
    return pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.tiles


def sizes_of(k: Tensor, heads: int, pieces: Pieces, block: int) -> dict[str, Any]:
    """The kernels' constants: EXACT is the precision of float32 products, PRECISION that of products in the inputs'
    type."""
    return {
        "H": heads, "G": k.shape[1], "K": k.shape[2], "TILE": pieces.tile, "BK": min(block, 32),
        "PRECISION": exact_products(k.dtype), "EXACT": exact_products(torch.float32), "num_warps": 4, "num_stages": 1,
    }  # fmt: skip


@triton.jit
def tile_tokens(
    tile, h, log_decay_ptr, beta_ptr, sequence_ptr, number_ptr, cu_ptr, H: tl.constexpr, TILE: tl.constexpr
):
    """For a tile: its tokens, the one after its last, which of them exist, and their log decays and betas, float32."""
    _, _, first, last = locate(tile, sequence_ptr, number_ptr, cu_ptr, TILE)
    t = first + tl.arange(0, TILE)
    there = t < last
    log_decay = tl.load(log_decay_ptr + t * H + h, mask=there, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + t * H + h, mask=there, other=0.0).to(tl.float32)
    return t, last, there, log_decay, beta


@triton.jit
def token_rows(ptr, t, there, g, G: tl.constexpr, K: tl.constexpr, START, B: tl.constexpr):
    """`[TILE, B]`: columns START.. of tokens t of `[tokens, G, K]`."""
    i = START + tl.arange(0, B)
    return tl.load(ptr + (t * G + g)[:, None] * K + i[None, :], mask=there[:, None] & (i < K)[None, :], other=0.0)


@triton.jit
def token_columns(ptr, t, there, g, G: tl.constexpr, K: tl.constexpr, START, B: tl.constexpr):
    """The same as `[B, TILE]`."""
    i = START + tl.arange(0, B)
    return tl.load(ptr + (t * G + g)[None, :] * K + i[:, None], mask=there[None, :] & (i < K)[:, None], other=0.0)


@triton.jit
def token_products(
    x_ptr, y_ptr, t, there, g, G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`x_t . y_j` `[TILE, TILE]`, t as rows."""
    products = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, K, BK):
        x = token_rows(x_ptr, t, there, g, G, K, start, BK)
        y = token_columns(y_ptr, t, there, g, G, K, start, BK)
        products += tl.dot(x, y, input_precision=PRECISION)  # [TILE, BK] @ [BK, TILE] -> [TILE, TILE]
    return products


@triton.jit
def tile_decays(log_decay, TILE: tl.constexpr):
    """D `[TILE, TILE]`, t as rows, 0 for j > t. The sum begins at j, because a difference of two sums from the tile's
    start would lose the digits of a mild decay beside a strong one."""
    row = tl.arange(0, TILE)
    between = tl.cumsum(tl.where(row[:, None] > row[None, :], log_decay[:, None], 0.0), 0)
    return tl.exp(tl.where(row[:, None] >= row[None, :], between, float("-inf")))


@triton.jit
def tile_decays_transposed(log_decay, TILE: tl.constexpr):
    """D with j as rows."""
    row = tl.arange(0, TILE)
    between = tl.cumsum(tl.where(row[None, :] > row[:, None], log_decay[None, :], 0.0), 1)
    return tl.exp(tl.where(row[None, :] >= row[:, None], between, float("-inf")))


@triton.jit
def decay_to_end(log_decay_ptr, t, last, h, H: tl.constexpr):
    """`exp(G_end - G_t)`, from the sum of the log decays after t."""
    following = tl.load(log_decay_ptr + (t + 1) * H + h, mask=t + 1 < last, other=0.0).to(tl.float32)
    return tl.exp(tl.cumsum(following, 0, reverse=True))


@triton.jit
def square_at(tile, h, tiles, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Where a tile's numbers `[t, j]` (transposed: `[j, t]`) are in `[H, tiles, TILE, TILE]`."""
    row = tl.arange(0, TILE)
    if TRANSPOSED:
        return (h * tiles + tile) * (TILE * TILE) + row[None, :] * TILE + row[:, None]
    else:
        return (h * tiles + tile) * (TILE * TILE) + row[:, None] * TILE + row[None, :]


@triton.jit
def invert_tiles_kernel(
    k_ptr, log_decay_ptr, beta_ptr, inverse_ptr, log_kept_ptr, sequence_ptr, number_ptr, cu_ptr, tiles,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """X = (I + A)^-1, and the sum of the tile's log decays"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    t, _, there, log_decay, beta = tile_tokens(
        tile, h, log_decay_ptr, beta_ptr, sequence_ptr, number_ptr, cu_ptr, H, TILE
    )
    row = tl.arange(0, TILE)
    system = token_products(k_ptr, k_ptr, t, there, h // (H // G), G, K, TILE, BK, PRECISION)
    system = tl.where(row[:, None] > row[None, :], beta[:, None] * system * tile_decays(log_decay, TILE), 0.0)
    inverse = tl.where(row[:, None] == row[None, :], 1.0, 0.0)
    for j in range(0, tl.sum(there.to(tl.int32)) - 1):
        column = tl.sum(tl.where(row[None, :] == j, system, 0.0), 1)
        done = tl.sum(tl.where(row[:, None] == j, inverse, 0.0), 0)
        inverse -= column[:, None] * done[None, :]
    tl.store(inverse_ptr + square_at(tile, h, tiles, TILE, False), inverse)
    tl.store(log_kept_ptr + h * tiles + tile, tl.sum(log_decay))


@triton.jit
def tile_rows_kernel(
    q_ptr, k_ptr, log_decay_ptr, beta_ptr, inverse_ptr, own_ptr, read_ptr, write_ptr, keys_ptr, sequence_ptr,
    number_ptr, cu_ptr, tiles, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Mx, Qe, U and K from X"""
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    g = h // (H // G)
    t, last, there, log_decay, beta = tile_tokens(
        tile, h, log_decay_ptr, beta_ptr, sequence_ptr, number_ptr, cu_ptr, H, TILE
    )
    from_start = tl.exp(tl.cumsum(log_decay, 0))
    to_end = decay_to_end(log_decay_ptr, t, last, h, H)
    scores = token_products(q_ptr, k_ptr, t, there, g, G, K, TILE, BK, PRECISION)
    scores *= scale * tile_decays(log_decay, TILE)
    solved = tl.load(inverse_ptr + square_at(tile, h, tiles, TILE, False)) * beta[None, :]
    own = tl.dot(scores, solved, input_precision=EXACT)  # [TILE, TILE] @ [TILE, TILE] -> [TILE, TILE]
    tl.store(own_ptr + square_at(tile, h, tiles, TILE, False), own)
    ending = tl.load(inverse_ptr + square_at(tile, h, tiles, TILE, True)) * beta[:, None] * to_end[None, :]
    for start in range(0, K, BK):
        i = start + tl.arange(0, BK)
        at = ((h * tiles + tile) * TILE + tl.arange(0, TILE))[:, None] * K + i[None, :]
        inside = (i < K)[None, :]
        k = token_rows(k_ptr, t, there, g, G, K, start, BK).to(tl.float32)
        keys = k * from_start[:, None]
        tl.store(keys_ptr + at, keys.to(keys_ptr.dtype.element_ty), mask=inside)
        read = token_rows(q_ptr, t, there, g, G, K, start, BK).to(tl.float32) * (scale * from_start)[:, None]
        read -= tl.dot(own, keys, input_precision=EXACT)  # [TILE, TILE] @ [TILE, BK] -> [TILE, BK]
        tl.store(read_ptr + at, read, mask=inside)
        write = tl.dot(ending, k, input_precision=EXACT)  # [TILE, TILE] @ [TILE, BK] -> [TILE, BK]
        tl.store(write_ptr + at, write, mask=inside)
