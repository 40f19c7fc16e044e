"""The delta rule's chunk algebra: what LONG tokens do to a state, made of what TILE tokens do, by doubling.

Solving the triangular system of a whole chunk of 512 tokens would cost several times what reading 30 slots does. Two
neighbouring pieces A, then B, of n tokens each compose without solving anything:

    P = P_B P_A     Mx = [[Mx_A, 0], [Qe_B U_A^T, Mx_B]]     Qe = [Qe_A, Qe_B P_A]     U = [U_A P_B^T, U_B]

so the system is solved for tiles alone (reader/transitions.py), and three doublings make 512 tokens of 64. All of it runs
on batched matrix products of torch in float32 and is differentiated by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.transitions import transitions


def chunk_algebra(
    q: Tensor, k: Tensor, log_decay: Tensor | None, beta: Tensor, dtype: torch.dtype, scale: float, heads: int,
    pieces: Pieces,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Mx `[tokens, H, LONG]`, Qe, U `[tokens, H, K]`, R `[chunks, H, K, K]` in `dtype`; carry `[chunks, H]` float32.

    q, k `[B, T, G, K]`, log_decay, beta `[B, T, H]`. A chunk turns S into `carry S - R S`; carry has no gradient: it goes
    through R alone, since `carry I - R` is the same for any carry.
    """
    chunks, long, tile = pieces.chunks, pieces.long, pieces.tile
    home = _home(pieces)

    def split(x: Tensor) -> Tensor:
        """`[B, T, heads, ...]` -> `[1, heads, tiles, TILE, ...]` float32, zeros where a chunk is short."""
        x = x.flatten(0, 1).movedim(1, 0).to(torch.float32, memory_format=torch.contiguous_format)
        if home is not None:
            x = x.new_zeros(len(x), chunks * long, *x.shape[2:]).index_copy(1, home, x)
        return x.unflatten(1, (-1, tile))[None]

    def join(x: Tensor) -> Tensor:
        """The way back, `[H, chunks, LONG, D]` -> `[tokens, H, D]`."""
        x = x.flatten(1, 2)
        if home is not None:
            x = x.index_select(1, home)
        return x.movedim(0, 1).to(dtype, memory_format=torch.contiguous_format)

    decay = None if log_decay is None else split(log_decay)
    tiles = transitions(split(q) * scale, split(k), decay, split(beta), heads, None)
    within, read, write, carry = (x[0] for x in (tiles.within, tiles.read, tiles.write, tiles.carry))
    while within.shape[-1] < long:
        within, read, write, carry = double(within, read, write, carry)
    kept = torch.ones(heads, chunks, device=q.device)
    if decay is not None:
        kept = decay[0].detach().sum(-1).unflatten(1, (chunks, -1)).sum(-1).exp()
    removal = kept[..., None, None] * torch.eye(k.shape[-1], device=q.device) - carry
    return join(within), join(read), join(write), removal.movedim(0, 1).to(dtype).contiguous(), kept.t().contiguous()


def _home(pieces: Pieces) -> Tensor | None:
    """Where each token of the batch is in `[chunks, LONG]`: `[tokens]`; None where no chunk is short: just there.

    Tokens are brought there by it and taken from there by it, each way being the other's gradient: nothing is ever added
    up from several places, for which a GPU would sort the places first. And no mask is asked for its number of ones, for
    which the host would wait.
    """
    if pieces.chunks * pieces.long == pieces.tokens:
        return None
    first = pieces.cu[pieces.chunk_sequence.long()] + pieces.chunk_number * pieces.long
    every = torch.arange(pieces.tokens, device=first.device)
    chunk = torch.searchsorted(first, every, right=True) - 1
    return chunk * pieces.long + every - first[chunk]


def double(within: Tensor, read: Tensor, write: Tensor, carry: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pieces of n tokens, two and two, into half as many of 2n.

    Mx `[H, pieces, n, n]`, Qe, U `[H, pieces, n, K]`, P `[H, pieces, K, K]`; pieces come in pairs.
    """
    (mx_a, mx_b), (qe_a, qe_b), (u_a, u_b), (p_a, p_b) = (
        x.unflatten(1, (-1, 2)).unbind(2) for x in (within, read, write, carry)
    )
    across = qe_b @ u_a.transpose(-1, -2)  # [n, K] @ [K, n] -> [n, n]
    above = torch.cat((mx_a, torch.zeros_like(mx_a)), -1)
    return (
        torch.cat((above, torch.cat((across, mx_b), -1)), -2),
        torch.cat((qe_a, qe_b @ p_a), -2),  # [n, K] @ [K, K] -> [n, K]
        torch.cat((u_a @ p_b.transpose(-1, -2), u_b), -2),
        p_b @ p_a,
    )  # fmt: skip
