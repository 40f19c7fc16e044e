"""The delta rule's chunk algebra: what LONG tokens do to a state, made of what TILE tokens do.

Solving the triangular system of a whole chunk of 512 tokens would cost several times as much as reading 30 slots. So it
is solved only within tiles (tile_solve.py). With its solution, a tile turns a state S into P S, reads S by Qe, and its
tokens read each other by Mx:

    P S = exp(G_end) S - U^T K S            Qe = exp(G) q - Mx K            Mx = (Q K^T * D) Tm

Nothing else of a tile is needed: Qe is carried back through the P of the tiles before it, which gives Mx of the pairs
of tiles on the way, and U is carried forward through the P of the tiles after it (carried_rows.py). The chunk's own P
is `exp(G_end) I - R`, with R the sum of `U_j K_j^T`, U at the chunk's end and K from its start (removals.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dla_kernels.reader.fused.compose_tiles import compose_tiles, compose_tiles_backward
from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.tile_solve import solve_tiles
from dla_kernels.reader.fused.tile_solve_backward import solve_tiles_backward


@dataclass(frozen=True, kw_only=True)
class DeltaChunks:
    """The delta rule's quantities, as in reader/transitions.py, for chunks of LONG tokens; or their gradients.

    Attributes:
        within: Mx `[tokens, H, LONG]`, meaningless for tokens of later tiles. read, write: Qe, U `[tokens, H, K]`.
        removal, carry: a chunk turns S into `carry S - removal S`; `[chunks, H, K, K]` and `[chunks, H]` float32.
    """

    within: Tensor
    read: Tensor
    write: Tensor
    removal: Tensor
    carry: Tensor


def chunk_algebra(
    q: Tensor, k: Tensor, log_decay: Tensor | None, beta: Tensor, scale: float, pieces: Pieces, tiles: Tiles
) -> DeltaChunks:
    """q, k `[tokens, G, K]` of one type, which is also that of the result; log_decay, beta `[tokens, H]`; all
    contiguous."""
    solved = solve_tiles(q, k, _decay(log_decay, beta), beta, scale, pieces, tiles.block_k)
    decays = _TileDecays(solved.log_kept, pieces)
    made = compose_tiles(solved, decays.kept, decays.from_start, pieces)
    return DeltaChunks(within=made.within, read=made.read, write=made.write, removal=made.removal, carry=decays.carry)


def chunk_algebra_backward(
    gradients: DeltaChunks, q: Tensor, k: Tensor, log_decay: Tensor | None, beta: Tensor, scale: float, pieces: Pieces,
    tiles: Tiles,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk `[tokens, G, K]` in their type, dlog_decay and dbeta `[tokens, H]` float32, from the gradients of the
    result of `chunk_algebra`, whose intermediate values are recomputed."""
    given = q, k, _decay(log_decay, beta), beta, scale, pieces, tiles.block_k
    solved = solve_tiles(*given)
    decays = _TileDecays(solved.log_kept, pieces)
    d_own, dread, dwrite, dkeys, dkept, dfrom_start = compose_tiles_backward(
        gradients.within.contiguous(), gradients.read.contiguous(), gradients.write.contiguous(),
        gradients.removal.to(k.dtype).contiguous(), solved, decays.kept, decays.from_start, pieces,
    )  # fmt: skip
    dlog_kept = decays.backward(dkept, dfrom_start, gradients.carry)
    return solve_tiles_backward(*given, solved, d_own, dread, dwrite, dkeys, dlog_kept)


def _decay(log_decay: Tensor | None, beta: Tensor) -> Tensor:
    return torch.zeros_like(beta) if log_decay is None else log_decay


class _TileDecays:
    """How much tiles and chunks keep of a state, from the sums of the tiles' log decays `[H, tiles]`; all float32.

    Attributes:
        kept, from_start: `[H, tiles]`, the decay over a tile, and over the tiles before it in its chunk.
        carry: `[chunks, H]`, the decay over a chunk.
    """

    def __init__(self, log_kept: Tensor, pieces: Pieces) -> None:
        per_chunk = pieces.long // pieces.tile
        chunk = pieces.first_chunk[pieces.tile_sequence.long()] + pieces.tile_number // per_chunk
        self._place = (chunk * per_chunk + pieces.tile_number % per_chunk).long()
        self._chunks, self._per_chunk = pieces.chunks, per_chunk
        # summed within each chunk, because differences of sums over the batch would lose digits
        by_chunk = self._by_chunk(log_kept)
        before = torch.nn.functional.pad(by_chunk[..., :-1].cumsum(-1), (1, 0))
        self.kept = log_kept.exp()
        self.from_start = self._by_tile(before).exp()
        self.carry = by_chunk.sum(-1).exp().t().contiguous()

    def backward(self, dkept: Tensor, dfrom_start: Tensor, dcarry: Tensor) -> Tensor:
        """d log_kept `[H, tiles]`."""
        before = self._by_chunk(dfrom_start * self.from_start)
        later = torch.nn.functional.pad(before[..., 1:].flip(-1).cumsum(-1).flip(-1), (0, 1))
        of_chunk = (dcarry * self.carry).t()[..., None]
        return dkept * self.kept + self._by_tile(later + of_chunk)

    def _by_chunk(self, x: Tensor) -> Tensor:
        """`[H, tiles]` -> `[H, chunks, LONG / TILE]`, zeros where a chunk has fewer."""
        wide = x.new_zeros(len(x), self._chunks * self._per_chunk).index_copy(1, self._place, x)
        return wide.unflatten(1, (-1, self._per_chunk))

    def _by_tile(self, x: Tensor) -> Tensor:
        """Undo `_by_chunk`: `[H, chunks, LONG / TILE]` -> `[H, tiles]`."""
        return x.flatten(1).index_select(1, self._place)
