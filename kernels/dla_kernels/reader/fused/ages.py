# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Ages of slots and tokens, from a plan's shifts: tables that every other kernel uses.

A step of a plan is a monotone map of ages, so tables per tile can be made for all tiles in parallel and composed
afterwards:

    old[t, i]       the age after step t of the slot that had age i when t's tile began
    inner[t, j]     the age after step t of the slot that token j <= t of t's tile is in
    slot_age[q, i]  the age, when tile q begins, of the slot that had age i when its chunk began
    token_age[q, j] the age, when tile q of the chunk ends, of the slot that token j (in it or before it) is in
    final_slot[i], final_token[j]  the same two at the end of the chunk
    younger[t, a]   how many slots of `old[t]` are of age a or younger
    older[t, a]     how many tokens of `inner[t]` are of age a or older

Tables are head-major and, up to 64 slots, one byte an entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.reader.fused.pieces import Pieces, locate


@dataclass(frozen=True, kw_only=True)
class AgeTables:
    """uint8 unless said otherwise; entries for slots that do not exist, and for tokens j > t, are meaningless.

    Attributes:
        old: `[H, tokens, M]`. inner: `[H, tokens, TILE]`.
        slot_age: `[tiles, H, M]`. token_age: `[H, LONG / TILE, tokens]`.
        final_slot: `[chunks, H, M]` int32, because entries that are loaded ahead must have four bytes. final_token:
            `[H, tokens]`.
        token_ends: `[chunks, H, M + 1]` int32, how many tokens of a chunk are in slots of age a or older at its end. Ages are monotone:
            those are its first tokens, and the slot of age a has those from `token_ends[a + 1]` up to `token_ends[a]`.
        used: `[chunks, H]` int32, slots that exist when a chunk begins. used_end: `[N, H]` int32, at a sequence's end.
        younger, older: `[H, tokens, MP]`, for a backward pass; empty for a forward one.
    """

    old: Tensor
    inner: Tensor
    slot_age: Tensor
    token_age: Tensor
    final_slot: Tensor
    final_token: Tensor
    token_ends: Tensor
    used: Tensor
    used_end: Tensor
    younger: Tensor
    older: Tensor


def padded_slots(slots: int) -> int:
    """M rounded up to a power of two that tensor cores take."""
    return max(16, 1 << (slots - 1).bit_length())


def age_tables(
    shift: Tensor, pieces: Pieces, slots: int, *, collapse: bool, cache_given: bool, backward: bool
) -> AgeTables:
    """The tables for `shift` `[tokens, H]` int32."""
    tokens, heads = shift.shape
    tiles_per_chunk = pieces.long // pieces.tile

    def bytes_of(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=shift.device)

    tables = AgeTables(
        old=bytes_of(heads, tokens, slots),
        inner=bytes_of(heads, tokens, pieces.tile),
        slot_age=bytes_of(pieces.tiles, heads, slots),
        token_age=bytes_of(heads, tiles_per_chunk, tokens),
        final_slot=torch.empty(pieces.chunks, heads, slots, dtype=torch.int32, device=shift.device),
        final_token=bytes_of(heads, tokens),
        token_ends=torch.empty(pieces.chunks, heads, slots + 1, dtype=torch.int32, device=shift.device),
        used=torch.empty(pieces.chunks, heads, dtype=torch.int32, device=shift.device),
        used_end=torch.empty(pieces.sequences, heads, dtype=torch.int32, device=shift.device),
        younger=bytes_of(heads, tokens, padded_slots(slots) if backward else 0),
        older=bytes_of(heads, tokens, padded_slots(slots) if backward else 0),
    )
    sizes = {"H": heads, "M": slots, "MP": padded_slots(slots), "TILE": pieces.tile}
    tile_ages_kernel[(pieces.tiles, heads)](
        shift, tables.old, tables.inner, tables.younger, tables.older,
        pieces.tile_sequence, pieces.tile_number, pieces.cu, tokens, COLLAPSE=collapse, BACKWARD=backward, **sizes, num_warps=1,
    )  # fmt: skip
    chunk_ages_kernel[(pieces.chunks, heads)](
        tables.old, tables.inner, tables.slot_age, tables.token_age, tables.final_slot, tables.final_token, tables.token_ends,
        pieces.chunk_sequence, pieces.chunk_number, pieces.cu, pieces.first_tile, tokens,
        LONG=pieces.long, **sizes, num_warps=4,
    )  # fmt: skip
    used_slots_kernel[(pieces.sequences, heads)](
        tables.final_slot, tables.final_token, tables.used, tables.used_end, pieces.cu, pieces.first_chunk, tokens,
        H=heads, M=slots, START=slots if cache_given else 0, num_warps=1,
    )  # fmt: skip
    return tables


@triton.jit
def tile_ages_kernel(
    shift_ptr, old_ptr, inner_ptr, younger_ptr, older_ptr, sequence_ptr, number_ptr, cu_ptr, tokens,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, TILE: tl.constexpr, COLLAPSE: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """`age += age <= shift_t` (collapse: `age = shift_t + 1` for those), one row of each table per token."""
    h = tl.program_id(1).to(tl.int64)
    _, _, first, last = locate(tl.program_id(0), sequence_ptr, number_ptr, cu_ptr, TILE)
    slot = tl.arange(0, MP)
    token = tl.arange(0, TILE)
    old = slot
    inner = tl.full((TILE,), -1, tl.int32)
    younger = slot + 1
    older = tl.zeros((MP,), tl.int32)
    for s in range(0, (last - first).to(tl.int32)):
        shift = tl.load(shift_ptr + (first + s) * H + h)
        if COLLAPSE:
            old = tl.where(old <= shift, shift + 1, old)
            inner = tl.where((inner <= shift) & (inner >= 0), shift + 1, inner)
        else:
            old += (old <= shift).to(tl.int32)
            inner += ((inner <= shift) & (inner >= 0)).to(tl.int32)
        old = tl.minimum(old, M - 1)
        inner = tl.where(token == s, 0, tl.minimum(inner, M - 1))
        row = h * tokens + first + s
        tl.store(old_ptr + row * M + slot, old.to(tl.uint8), mask=slot < M)
        tl.store(inner_ptr + row * TILE + token, tl.maximum(inner, 0).to(tl.uint8))
        if BACKWARD:
            # none is older than M - 1
            if COLLAPSE:  # nothing old is younger than what all have become
                to = tl.minimum(shift + 1, M - 1)
                younger = tl.where(slot < to, 0, younger)
                older = tl.where(slot <= to, s, older)
            else:
                before = tl.maximum(slot - 1, 0)
                moved = tl.where(slot == 0, 0, tl.gather(younger, before, 0))
                younger = tl.where((slot <= shift) & (slot < M - 1), moved, younger)
                older = tl.where((slot <= shift + 1) & (slot < M), tl.gather(older, before, 0), older)
            older = tl.where(slot == 0, s + 1, older)
            tl.store(younger_ptr + row * MP + slot, younger.to(tl.uint8))
            tl.store(older_ptr + row * MP + slot, older.to(tl.uint8))


@triton.jit
def chunk_ages_kernel(
    old_ptr, inner_ptr, slot_age_ptr, token_age_ptr, final_slot_ptr, final_token_ptr, token_ends_ptr,
    sequence_ptr, number_ptr, cu_ptr, first_tile_ptr, tokens,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, TILE: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """The maps of a chunk's tiles, composed one after the other."""
    TILES: tl.constexpr = LONG // TILE
    chunk = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    n, c, first, last = locate(chunk, sequence_ptr, number_ptr, cu_ptr, LONG)
    first_tile = tl.load(first_tile_ptr + n) + c * TILES
    length = (last - first).to(tl.int32)
    slot = tl.arange(0, MP)
    j = tl.arange(0, LONG)
    slot_age = tl.minimum(slot, M - 1)
    token_age = tl.zeros((LONG,), tl.int32)
    for q in range(0, (length + TILE - 1) // TILE):
        tl.store(
            slot_age_ptr + ((first_tile + q).to(tl.int64) * H + h) * M + slot, slot_age.to(tl.uint8), mask=slot < M
        )
        end = tl.minimum((q + 1) * TILE, length)
        row = h * tokens + first + end - 1  # the tile's last token: its row holds the whole tile's map
        slot_age = tl.load(old_ptr + row * M + slot_age).to(tl.int32)
        before = j < q * TILE
        inside = (j >= q * TILE) & (j < end)
        moved = tl.load(old_ptr + row * M + token_age, mask=before, other=0).to(tl.int32)
        fresh = tl.load(inner_ptr + row * TILE + (j - q * TILE), mask=inside, other=0).to(tl.int32)
        token_age = tl.where(before, moved, fresh)
        tl.store(token_age_ptr + (h * TILES + q) * tokens + first + j, token_age.to(tl.uint8), mask=j < end)
    tl.store(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + slot, slot_age, mask=slot < M)
    tl.store(final_token_ptr + h * tokens + first + j, token_age.to(tl.uint8), mask=j < length)
    token_age = tl.where(j < length, token_age, -1)
    token_ends_ptr += (chunk.to(tl.int64) * H + h) * (M + 1)
    for a in range(0, M + 1):
        tl.store(token_ends_ptr + a, tl.sum((token_age >= a).to(tl.int32)))


@triton.jit
def used_slots_kernel(
    final_slot_ptr, final_token_ptr, used_ptr, used_end_ptr, cu_ptr, first_chunk_ptr, tokens,
    H: tl.constexpr, M: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    """The slots in use are those up to the age of the oldest, which is found by following the sequence's first token
    from chunk to chunk."""
    n = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    begin = tl.load(cu_ptr + n)
    used = tl.zeros((), tl.int32) + START
    first_chunk = tl.load(first_chunk_ptr + n)
    for c in range(0, tl.load(first_chunk_ptr + n + 1) - first_chunk):
        chunk = first_chunk + c
        tl.store(used_ptr + chunk * H + h, used)
        old = tl.load(final_slot_ptr + (chunk.to(tl.int64) * H + h) * M + tl.maximum(used - 1, 0))
        young = tl.load(final_token_ptr + h * tokens + begin).to(tl.int32)
        used = tl.where(used == 0, young, old) + 1
    tl.store(used_end_ptr + n * H + h, used)
