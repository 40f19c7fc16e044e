"""The delta rule's chunk algebra: what LONG tokens do to a state, made of what TILE tokens do.

Solving the triangular system of a whole chunk of 512 tokens would cost several times what reading 30 slots does. So it is
solved for tiles alone (here, in torch, differentiated by autograd); with its solution `Tm` (reader/transitions.py),
`K_t = exp(G_t) k_t` and `U = Tm^T (exp(G_end - G) k)`, a tile turns a state S into

    P S = exp(G_end) S - U^T K S            reads it by Qe = exp(G) q - Mx K            and is read by Mx = (Q K^T * D) Tm

Nothing else is needed of it: Qe goes back through the P of the tiles before, giving Mx of the pairs of tiles on its way, and
U goes on through the P of those after (carried_rows.py). The chunk's own P is `exp(G_end) I - R` with R the sum of `U_j K_j^T`,
U at the chunk's end and K from its start (removals.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.reader.fused.compose_tiles import compose_tiles
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.transitions import decays_within, solve_updates


def chunk_algebra(
    q: Tensor, k: Tensor, log_decay: Tensor | None, beta: Tensor, dtype: torch.dtype, scale: float, heads: int,
    pieces: Pieces,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Mx `[tokens, H, LONG]`, Qe, U `[tokens, H, K]`, R `[chunks, H, K, K]` in `dtype`; carry `[chunks, H]` float32.

    The equations of the delta rule in reader/transitions.py for chunks of LONG tokens. q, k `[B, T, G, K]`, log_decay, beta `[B, T, H]`. A chunk turns S into `carry S - R S`; carry has no gradient: it goes
    through R alone, since `carry I - R` is the same for any carry.
    """
    home = _home(pieces)

    def split(x: Tensor) -> Tensor:
        """`[B, T, heads, ...]` -> `[H, tiles, TILE, ...]` float32, zeros where a tile is short."""
        x = x.flatten(0, 1).movedim(1, 0).to(torch.float32, memory_format=torch.contiguous_format)
        if home is not None:
            x = x.new_zeros(len(x), pieces.tiles * pieces.tile, *x.shape[2:]).index_copy(1, home, x)
        x = x.unflatten(1, (-1, pieces.tile))
        return x if len(x) == heads else x.repeat_interleave(heads // len(x), 0)

    def join(x: Tensor) -> Tensor:
        """The way back, `[H, tiles TILE, K]` -> `[tokens, H, K]`."""
        if home is not None:
            x = x.index_select(1, home)
        return x.movedim(0, 1).to(dtype, memory_format=torch.contiguous_format)

    decay = torch.zeros_like(beta) if log_decay is None else log_decay
    own, read, write, keys, log_kept = tile_algebra(split(q), split(k), split(decay), split(beta), scale)
    log_before, log_carry = _over_chunks(log_kept, pieces)
    within, read, write, removal = compose_tiles(
        own, read.flatten(1, 2), write.flatten(1, 2), keys.flatten(1, 2), log_kept.exp(), log_before.exp(),
        pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk, pieces.tokens, pieces.chunks,
        pieces.tile, pieces.long, dtype,
    )  # fmt: skip
    carry = log_carry.exp().t()
    change = (carry.detach() - carry)[..., None, None]  # zero, but the gradient of the carry
    removal = removal + change * torch.eye(k.shape[-1], device=q.device)
    return within, join(read), join(write), removal.to(dtype), carry.detach().contiguous()


def _over_chunks(log_kept: Tensor, pieces: Pieces) -> tuple[Tensor, Tensor]:
    """Of what tiles keep, `[H, tiles]`: the sum over the tiles before in their chunk, alike, and over chunks `[H, chunks]`.

    Sums of a chunk's own numbers: differences of sums over the batch would lose their digits.
    """
    per_chunk = pieces.long // pieces.tile
    number = pieces.tile_number % per_chunk
    chunk = pieces.first_chunk[pieces.tile_sequence.long()] + pieces.tile_number // per_chunk
    place = (chunk * per_chunk + number).long()
    by_chunk = log_kept.new_zeros(len(log_kept), pieces.chunks * per_chunk).index_copy(1, place, log_kept)
    by_chunk = by_chunk.unflatten(1, (-1, per_chunk))
    before = torch.nn.functional.pad(by_chunk[..., :-1].cumsum(-1), (1, 0))
    return before.flatten(1).index_select(1, place), by_chunk.sum(-1)


def tile_algebra(
    q: Tensor, k: Tensor, log_decay: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mx `[H, tiles, TILE, TILE]`, Qe, U and K `[H, tiles, TILE, K]` and `G_end` `[H, tiles]` of every tile.

    q, k `[H, tiles, TILE, K]`, log_decay, beta `[H, tiles, TILE]`. Factors of tokens go to the side that is smaller.
    """
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    decays, from_start, to_end = decays_within(log_decay, causal)
    keys = k * from_start[..., None]
    solved = solve_updates(beta, k @ k.transpose(-1, -2), decays)
    own = (q @ k.transpose(-1, -2) * (scale * decays)) @ solved
    read = q * (scale * from_start)[..., None]
    read = torch.baddbmm(read.flatten(0, 1), own.flatten(0, 1), keys.flatten(0, 1), alpha=-1).view_as(q)
    write = (to_end[..., None] * solved).transpose(-1, -2) @ k
    return own, read, write, keys, log_decay.sum(-1)


def _home(pieces: Pieces) -> Tensor | None:
    """Where each token of the batch is in `[tiles, TILE]`: `[tokens]`; None where no tile is short: just there.

    Tokens are brought there by it and taken from there by it, each way being the other's gradient: nothing is ever added
    up from several places, for which a GPU would sort the places first. And no mask is asked for its number of ones, for
    which the host would wait.
    """
    if pieces.tiles * pieces.tile == pieces.tokens:
        return None
    first = pieces.cu[pieces.tile_sequence.long()] + pieces.tile_number * pieces.tile
    every = torch.arange(pieces.tokens, device=first.device)
    tile = torch.searchsorted(first, every, right=True) - 1
    return tile * pieces.tile + every - first[tile]
