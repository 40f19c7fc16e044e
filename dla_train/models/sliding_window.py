"""Softmax attention in which each token reads a window of the tokens before it.

A mask over all pairs of tokens would need T x T memory and work. Here the queries are cut into blocks as long as the
window: a block reads nothing but itself and the block before it, with the same mask for every block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Causal attention of the last `Tq` of `Tk` positions.

    Args:
        q: `[B, H, Tq, D]`. k, v: `[B, G, Tk, D]`, Tk at least Tq; H is a multiple of G.
        window: how many keys a query reads, its own the last of them; None for all.
    Returns:
        as q.
    """
    queries, keys = q.shape[2], k.shape[2]
    if window is not None and keys > window:
        if queries == 1:
            return _attend(q, k[:, :, -window:], v[:, :, -window:])
        return _attend_in_blocks(q, k, v, window)
    if queries == keys:
        return _attend(q, k, v, is_causal=True)
    if queries == 1:
        return _attend(q, k, v)
    return _attend(q, k, v, causal_lower_right(queries, keys))


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """As `attend`, where there are more keys than a window has."""
    queries = q.shape[2]
    past = min(k.shape[2] - queries, window - 1)
    k, v = k[:, :, -(past + queries) :], v[:, :, -(past + queries) :]
    # The first block: the part of the past that it still reads, and itself.
    first = min(window, queries)
    mask = _band(first, past + first, window, q.device) if past else None
    parts = [_attend(q[:, :, :first], k[:, :, : past + first], v[:, :, : past + first], mask, is_causal=not past)]
    blocks = (queries - first) // window
    if blocks:
        end = first + blocks * window
        blocks_of_k, blocks_of_v = (_cut(x[:, :, past : past + end], 2 * window, window) for x in (k, v))
        mask = _band(window, 2 * window, window, q.device)
        read = _attend(_cut(q[:, :, first:end], window, window), blocks_of_k, blocks_of_v, mask)
        parts.append(read.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3))
    if rest := queries - first - blocks * window:
        near = rest + window - 1
        mask = _band(rest, near, window, q.device)
        parts.append(_attend(q[:, :, -rest:], k[:, :, -near:], v[:, :, -near:], mask))
    return torch.cat(parts, 2)


def _cut(x: Tensor, width: int, step: int) -> Tensor:
    """`[B, H, T, D]` -> `[B * n, H, width, D]`: the n pieces of `width` tokens that begin at every `step`-th token."""
    return x.unfold(2, width, step).permute(0, 2, 1, 4, 3).flatten(0, 1)


def _band(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """`[queries, keys]`: which keys each of the last `queries` of `keys` positions reads."""
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    return (key <= query) & (key > query - window)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
    times = q.shape[1] // k.shape[1]
    if mask is not None and times > 1:
        # Not every torch has a kernel for grouped queries with a mask; without one, all scores would be kept.
        k, v, times = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1), 1
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=times > 1)
