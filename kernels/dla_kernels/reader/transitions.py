"""What one chunk does to the states, whatever slots they are in.

With `G` the cumulative log decay inside the chunk and `D = exp(G_t - G_j)` for `j <= t` of the same document:

    plain:  Mx = QK^T * D          Qe = exp(G) Q             P = exp(G_n)                     U_j = exp(G_n - G_j) k_j
    delta:  Mx = (QK^T * D) Tm     Qe = exp(G) Q - (QK^T * D) W     P = exp(G_n) I - Kend^T W     U = Tm^T Kend
            Tm = (I + strict_lower(beta * KK^T * D))^-1 diag(beta),  W = Tm (exp(G) K),  Kend_j = exp(G_n - G_j) k_j

A document that begins inside a chunk needs no extra rule: `D` and the factors `exp(G)` (from the chunk's start) and
`exp(G_n - G_j)` (to its end) are zero across the border. Everything here is differentiated by autograd and computed for
all chunks at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """The transitions of N chunks of C tokens, for H heads; letters as above.

    Attributes:
        within: Mx `[B, H, N, C, C]`, how token j is read at token t.
        read: Qe `[B, H, N, C, K]`.
        write: U `[B, H, N, C, K]`.
        carry: P, `[B, H, N]` for plain decay, `[B, H, N, K, K]` for the delta rule.
    """

    within: Tensor
    read: Tensor
    write: Tensor
    carry: Tensor


@dataclass(frozen=True, kw_only=True)
class ChunkDocuments:
    """Where documents lie in the chunks.

    Attributes:
        last: `[N, C]`, the index (in `N C`) of the last token of each token's document.
        same: `[N, C, C]`, whether two tokens share a document.
        with_past: `[N, C]`, whether a token shares its document with the token before the chunk.
        with_last: `[N, C]`, whether a token shares its document with the chunk's last token.
    """

    last: Tensor
    same: Tensor
    with_past: Tensor
    with_last: Tensor

    @staticmethod
    def of(document: Tensor) -> ChunkDocuments:
        """`document` `[N, C]`: for each token, the number of its document."""
        past = torch.cat((document[:1, 0], document[:-1, -1]))
        flat = document.flatten().contiguous()
        return ChunkDocuments(
            last=(torch.searchsorted(flat, flat, right=True) - 1).view_as(document),
            same=document[:, :, None] == document[:, None, :],
            with_past=document == past[:, None],
            with_last=document == document[:, -1:],
        )


def transitions(
    q: Tensor, k: Tensor, log_decay: Tensor | None, beta: Tensor | None, heads: int, documents: ChunkDocuments | None
) -> Transitions:
    """The transitions for q, k `[B, G, N, C, K]` and log_decay, beta `[B, H, N, C]` or None."""
    batch, _, chunks, size, key_dim = q.shape
    causal = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    allowed = causal if documents is None else causal & documents.same
    similarity = _per_head(q @ k.transpose(-1, -2), heads)  # [C, K] @ [K, C] -> [C, C]
    if log_decay is None:
        decays = allowed.to(q.dtype).expand(batch, heads, chunks, size, size)
        from_start = to_end = torch.ones(batch, heads, chunks, size, dtype=q.dtype, device=q.device)
    else:
        decays, from_start, to_end = decays_within(log_decay, allowed)
    if documents is not None:
        from_start = from_start * documents.with_past
        to_end = to_end * documents.with_last
    read = _scaled(q, from_start)
    end_keys = _scaled(k, to_end)
    within = similarity * decays
    if beta is None:
        return Transitions(within=within, read=read, write=end_keys, carry=from_start[..., -1])

    overlap = _per_head(k @ k.transpose(-1, -2), heads)
    solved = solve_updates(beta, overlap, decays)
    removed = solved @ _scaled(k, from_start)  # W: [C, C] @ [C, K] -> [C, K]
    carry = from_start[..., -1, None, None] * torch.eye(key_dim, dtype=q.dtype, device=q.device)
    return Transitions(
        within=within @ solved,
        read=read - within @ removed,
        write=solved.transpose(-1, -2) @ end_keys,
        carry=carry - end_keys.transpose(-1, -2) @ removed,  # [K, C] @ [C, K] -> [K, K]
    )


def decays_within(log_decay: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D `[..., C, C]`, zero where not `allowed` (lower triangular), `exp(G)` and `exp(G_end - G)` `[..., C]`.

    Each exponent is the sum of the log decays over (j, t], added term by term. A difference of two cumulative sums
    would lose the digits of a mild decay next to a strong one, in the value and in the gradient.
    """
    size = log_decay.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)
    between = torch.where(later, log_decay[..., :, None], 0.0).cumsum(-2)
    decays = torch.where(allowed, between, -torch.inf).exp()
    return decays, log_decay.cumsum(-1).exp(), between[..., -1, :].exp()


def solve_updates(beta: Tensor, overlap: Tensor, decays: Tensor) -> Tensor:
    """`Tm = (I + strict_lower(beta * KK^T * D))^-1 diag(beta)`, `[..., C, C]`; beta `[..., C]`, overlap = KK^T."""
    system = (beta[..., :, None] * overlap * decays).tril(-1)
    identity = torch.eye(beta.shape[-1], dtype=beta.dtype, device=beta.device)
    inverse = torch.linalg.solve_triangular(system + identity, identity, upper=False, unitriangular=True)
    return inverse * beta[..., None, :]


def _per_head(x: Tensor, heads: int) -> Tensor:
    """`[B, G, ...]` -> `[B, H, ...]`: repeats each group's value for all its heads."""
    return x.repeat_interleave(heads // x.shape[1], 1) if x.shape[1] != heads else x


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """`x` `[B, G, N, C, K]` times `factor` `[B, H, N, C]` -> `[B, H, N, C, K]`."""
    return _per_head(x, factor.shape[1]) * factor[..., None]
