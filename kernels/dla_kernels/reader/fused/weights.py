# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Weights of the slots carried into a chunk, and of pairs of tokens in it, from weights by age.

A slot of age i at its chunk's start is read at token t of tile q with `w[i, t] = L[t, old[t, slot_age[q, i]]]`. For two
tokens of one tile the weight is `L[t, inner[t, j]]`. For a token t of tile q and a token j of an earlier tile of the
chunk it is `L[t, old[t, e_j]]`, with e_j the age of j's slot when tile q begins: a product of the tile's `[TILE, M]`
weights and a 0/1 matrix `[M, TILE]`, which is exact and runs on tensor cores.

Every weight is used together with the decay since then, so the two are multiplied here, before the weight is rounded,
once for all kernels that read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.ages import AgeTables, padded_slots
from dla_kernels.reader.fused.pieces import Pieces, locate_tile
from dla_kernels.reader.fused.selection import select_columns, select_rows
from dla_kernels.reader.fused.tile_loads import load_tile, load_tile_transposed


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a read, times the decay up to it, in the layouts that kernels need.

    Attributes:
        at_chunk: `exp(G_t) w[i, t]` `[H, M, tokens]` float32, by age at the chunk's start; meaningless for slots that are not in
            use then.
        at_tile: `exp(G_t - G_r) L[t, old]` `[H, tokens, MP]` in the type of products, by age at the tile's start, r the token
            before it; 0 for i >= M.
        own: `exp(G_t - G_j) L[t, inner]` `[H, tokens, TILE]` in the type of products, of pairs in one tile: entry j of
            t is for the tile's j-th token, 0 after t.
    """

    at_chunk: Tensor
    at_tile: Tensor
    own: Tensor

    @property
    def slots(self) -> int:
        return self.at_chunk.shape[1]


def weights_of(
    slot_weight: Tensor, total: Tensor, dtype: torch.dtype, tables: AgeTables, pieces: Pieces, *, changes: bool = False
) -> Weights:
    """All layouts of `slot_weight` `[tokens, H, M]`, or, with `changes`, of `L[age + 1] - L[age]` (0 for the oldest):
    the change of a token's weight of a slot if that were one older. total = G `[H, tokens]` float32."""
    tokens, heads, slots = slot_weight.shape
    padded = padded_slots(slots)
    at_chunk = torch.empty(heads, slots, tokens, dtype=torch.float32, device=slot_weight.device)
    at_tile = torch.empty(heads, tokens, padded, dtype=dtype, device=slot_weight.device)
    own = torch.empty(heads, tokens, pieces.tile, dtype=dtype, device=slot_weight.device)
    weights_kernel[(pieces.tiles, heads)](
        slot_weight, total, at_chunk, at_tile, own, tables.old, tables.inner, tables.slot_age, tables.used,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, tokens,
        H=heads, M=slots, MP=padded, TILE=pieces.tile, LONG=pieces.long, CHANGES=changes, num_warps=4,
    )  # fmt: skip
    return Weights(at_chunk=at_chunk, at_tile=at_tile, own=own)


@triton.jit
def weights_kernel(
    slot_weight_ptr, total_ptr, at_chunk_ptr, at_tile_ptr, own_ptr, old_ptr, inner_ptr, slot_age_ptr, used_ptr,
    sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, tokens,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr, CHANGES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    _, chunk, _, q_tile, _, first, last = locate_tile(
        tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE, LONG
    )
    slot = tl.arange(0, MP)
    in_m = slot < M
    row = tl.arange(0, TILE)
    t = first + row
    there = (t < last)[:, None]

    total_ptr += h * tokens
    total = tl.load(total_ptr + t, mask=t < last, other=0.0)
    reference = 0.0
    if q_tile > 0:
        reference = tl.load(total_ptr + first - 1)

    # all weights of a token are loaded once, and taken from there by age
    mask = there & in_m[None, :]
    at = slot_weight_ptr + (t * H + h)[:, None] * M + slot[None, :]
    by_age = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if CHANGES:
        has_older = there & (slot < M - 1)[None, :]
        by_age = tl.where(has_older, tl.load(at + 1, mask=has_older, other=0.0).to(tl.float32) - by_age, 0.0)
    age = tl.load(old_ptr + (h * tokens + t)[:, None] * M + slot[None, :], mask=mask, other=0).to(tl.int32)
    weight = tl.where(in_m[None, :], tl.gather(by_age, age, 1), 0.0)
    weight *= tl.exp(total - reference)[:, None]
    at = (h * tokens + t)[:, None] * MP + slot[None, :]
    tl.store(at_tile_ptr + at, weight.to(at_tile_ptr.dtype.element_ty), mask=there)

    at = (h * tokens + t)[:, None] * TILE + row[None, :]
    not_after = row[None, :] <= row[:, None]
    inner = tl.load(inner_ptr + at, mask=there & not_after, other=0).to(tl.int32)
    decay = tl.exp(tl.where(not_after, total[:, None] - total[None, :], float("-inf")))
    weight = tl.where(not_after, tl.gather(by_age, inner, 1), 0.0) * decay
    tl.store(own_ptr + at, weight.to(own_ptr.dtype.element_ty), mask=there)

    in_use = slot < tl.load(used_ptr + chunk * H + h)
    start = tl.load(slot_age_ptr + (tile.to(tl.int64) * H + h) * M + slot, mask=in_use, other=0).to(tl.int32)
    age = tl.gather(age, tl.broadcast_to(start[None, :], age.shape), 1)
    weight = tl.gather(by_age, age, 1) * tl.exp(total)[:, None]
    at = (h * M + slot)[None, :] * tokens + t[:, None]
    tl.store(at_chunk_ptr + at, weight, mask=there & in_use[None, :])


@triton.jit
def tile_weights(at_tile_ptr, first, rows, MP: tl.constexpr, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """`[TILE, MP]`: at a tile's tokens, weight and decay of the slot that had age i when the tile began; at_tile_ptr is a head's.
    TRANSPOSED: `[MP, TILE]`."""
    slot = tl.arange(0, MP)
    if TRANSPOSED:
        return load_tile_transposed(at_tile_ptr, first, rows, slot, MP, MP, TILE)
    else:
        return load_tile(at_tile_ptr, first, rows, slot, MP, MP, TILE)


@triton.jit
def token_starts(token_age_ptr, h, q, first, tokens, TILES: tl.constexpr, TILE: tl.constexpr):
    """`[TILE]`: the age, when tile q > 0 begins, of the slots that the tokens of an earlier tile are in."""
    return tl.load(token_age_ptr + (h * TILES + q - 1) * tokens + first + tl.arange(0, TILE)).to(tl.int32)


@triton.jit
def pair_weights(starts_weight, starts, MP: tl.constexpr, PRECISION: tl.constexpr):
    """Weights of tokens j of an earlier tile at tokens t: `[TILE, MP]` by age at the tile's start, starts `[TILE]`."""
    member = (tl.arange(0, MP)[:, None] == starts[None, :]).to(starts_weight.dtype)
    return select_columns(starts_weight, member, PRECISION)  # [TILE, MP] @ [MP, TILE] -> [TILE, TILE]


@triton.jit
def pair_weights_transposed(starts_weight, starts, MP: tl.constexpr, PRECISION: tl.constexpr):
    """The same with j as rows, from weights `[MP, TILE]`."""
    member = (starts[:, None] == tl.arange(0, MP)[None, :]).to(starts_weight.dtype)
    return select_rows(member, starts_weight, PRECISION)  # [TILE, MP] @ [MP, TILE] -> [TILE, TILE]


@triton.jit
def own_weights(own_ptr, h, first, rows, tokens, TILE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Weights and decays of pairs in one tile `[TILE, TILE]` float32, rows t (TRANSPOSED: rows j); 0 for j > t."""
    column = tl.arange(0, TILE)
    own_ptr += h * tokens * TILE
    if TRANSPOSED:
        return load_tile_transposed(own_ptr, first, rows, column, TILE, TILE, TILE).to(tl.float32)
    else:
        return load_tile(own_ptr, first, rows, column, TILE, TILE, TILE).to(tl.float32)
