"""From what tiles do to a state to what their chunk does, for the delta rule, and the gradient of that.

Queries go back to the chunk's start, writes on to its end (carried_rows.py), and what the chunk removes is summed up
(removals.py).
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
    """What chunks do: within = Mx `[tokens, H, LONG]` of the products' type; read = Qe and write = U, of the chunk now,
    `[H, tiles TILE, K]`, and removal = R `[chunks, H, K, K]`, float32."""

    within: Tensor
    read: Tensor
    write: Tensor
    removal: Tensor


def compose_tiles(solved: SolvedTiles, kept: Tensor, from_start: Tensor, pieces: Pieces) -> ComposedTiles:
    """kept `[H, tiles]`: what a tile keeps of a state; from_start, alike: what the tiles before it in its chunk keep."""
    right = solved.keys
    left = solved.write.to(right.dtype)
    within = torch.empty(pieces.tokens, len(kept), pieces.long, dtype=right.dtype, device=right.device)
    read = carry_rows(solved.read, left, right, kept, pieces, up=False, within=within, own=solved.own)
    write = carry_rows(solved.write, right, left, kept, pieces, up=True)
    return ComposedTiles(
        within=within, read=read, write=write, removal=removals(write.to(right.dtype), right, from_start, pieces)
    )


def compose_tiles_backward(
    dwithin: Tensor, dread: Tensor, dwrite: Tensor, dremoval: Tensor, solved: SolvedTiles, kept: Tensor,
    from_start: Tensor, pieces: Pieces,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """d own, d read, d write, d keys, d kept and d from_start, all float32.

    dwithin, dremoval of the products' type; dread, dwrite `[H, tiles TILE, K]` float32, dwrite is overwritten.
    """
    right = solved.keys
    left = solved.write.to(right.dtype)
    trail = torch.empty(pieces.long // pieces.tile, *right.shape, dtype=right.dtype, device=right.device)
    d_own = torch.empty_like(solved.own)

    # of writes, carried on
    ended = carry_rows(solved.write, right, left, kept, pieces, up=True, trail=trail).to(right.dtype)
    dended, dkeys, dfrom_start = removals_backward(dremoval, ended, right, from_start, pieces)
    del ended
    dwrite, dkeys_passed, dwrite_passed, dkept = carry_rows_backward(
        dwrite.add_(dended), right, left, kept, trail, pieces, up=True
    )
    del dended
    dwrite.add_(dwrite_passed)
    dkeys.add_(dkeys_passed)

    # of queries, carried back
    carry_rows(solved.read, left, right, kept, pieces, up=False, trail=trail)
    dread, dwrite_passed, dkeys_passed, dkept_read = carry_rows_backward(
        dread, left, right, kept, trail, pieces, up=False, dwithin=dwithin, d_own=d_own
    )
    return d_own, dread, dwrite.add_(dwrite_passed), dkeys.add_(dkeys_passed), dkept + dkept_read, dfrom_start
