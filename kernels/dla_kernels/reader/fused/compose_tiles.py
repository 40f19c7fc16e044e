"""Composes the effects of tiles on a state into that of their chunk, for the delta rule, and computes the gradient of
that.

Queries are carried back to the chunk's start and writes forward to its end (carried_rows.py), and what the chunk
removes is summed (removals.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels.reader.fused.carried_rows import carry_rows, carry_rows_backward
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.removals import removals, removals_backward
from dla_kernels.reader.fused.tile_solve import SolvedTiles


@dataclass(frozen=True, kw_only=True)
class ComposedTiles:
    """The effects of chunks, in the products' type: within = Mx `[tokens, H, LONG]`, read = Qe and write = U, now of
    the chunk, `[tokens, H, K]`, removal = R `[chunks, H, K, K]`."""

    within: Tensor
    read: Tensor
    write: Tensor
    removal: Tensor


def compose_tiles(solved: SolvedTiles, kept: Tensor, from_start: Tensor, pieces: Pieces) -> ComposedTiles:
    """kept `[H, tiles]`: what a tile keeps of a state; from_start, alike: what the tiles before it in its chunk keep."""
    left, right = solved.factor, solved.keys
    within = torch.empty(pieces.tokens, len(kept), pieces.long, dtype=right.dtype, device=right.device)
    read = carry_rows(solved.read, left, right, kept, pieces, up=False, within=within, own=solved.own)
    write = carry_rows(solved.write, right, left, kept, pieces, up=True)
    return ComposedTiles(within=within, read=read, write=write, removal=removals(write, right, from_start, pieces))


def compose_tiles_backward(
    dwithin: Tensor, dread: Tensor, dwrite: Tensor, dremoval: Tensor, solved: SolvedTiles, kept: Tensor,
    from_start: Tensor, pieces: Pieces,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """d own, d read, d write, d keys, d kept and d from_start, all float32, of the parts of `solved`.

    dwithin to dremoval: the gradients of a `ComposedTiles`, in its shapes and type.
    """
    left, right = solved.factor, solved.keys
    trail = torch.empty(pieces.long // pieces.tile, *right.shape, dtype=right.dtype, device=right.device)
    d_own = torch.empty_like(solved.own)

    # of the writes, carried forward
    ended = carry_rows(solved.write, right, left, kept, pieces, up=True, trail=trail)
    dended, dkeys, dfrom_start = removals_backward(dremoval, ended, right, from_start, pieces)
    del ended
    dwrite_solved = torch.empty_like(solved.write)
    dkept = carry_rows_backward(
        dwrite, right, left, kept, trail, dwrite_solved, dkeys, dwrite_solved, pieces, up=True, plus=dended
    )
    del dended

    # of the queries, carried back
    carry_rows(solved.read, left, right, kept, pieces, up=False, trail=trail)
    dread_solved = torch.empty_like(solved.read)
    dkept += carry_rows_backward(
        dread, left, right, kept, trail, dread_solved, dwrite_solved, dkeys, pieces, up=False, dwithin=dwithin,
        d_own=d_own,
    )  # fmt: skip
    return d_own, dread_solved, dwrite_solved, dkeys, dkept, dfrom_start
