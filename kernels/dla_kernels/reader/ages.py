"""Slot ages inside a chunk: the age maps of a plan, composed.

Every step of a plan is a monotone map of ages (kernels' README.md, "The method"), so the age a slot or token has at any
step of a chunk follows from the shifts of that chunk alone, and all chunks are composed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AgeTables:
    """Ages in N chunks of C tokens.

    Attributes:
        old: `[B, H, N, C, M]` int64; `old[t, i]`: the age, after step t, of the slot that had age i when the chunk
            began.
        inner: `[B, H, N, C, C]` int64; `inner[t, j]`: the age, after step t, of the slot that token `j <= t` is in; 0
            where `j > t`.
    """

    old: Tensor
    inner: Tensor


def age_tables(shift: Tensor, capacity: int, *, collapse: bool) -> AgeTables:
    """The tables for `shift` `[B, H, N, C]`."""
    *batch, chunk = shift.shape
    device = shift.device
    width = capacity + chunk
    # The ages of the slots at the chunk's start, then those of its tokens, which are -1 until the token is reached.
    age = torch.full((*batch, width), -1, dtype=torch.int16, device=device)
    age[..., :capacity] = torch.arange(capacity, dtype=torch.int16, device=device)
    table = torch.empty((*batch, chunk, width), dtype=torch.int64, device=device)
    shift = shift.to(torch.int16)
    for t in range(chunk):
        step = shift[..., t, None]
        moves = (age <= step) & (age >= 0)
        age = torch.where(moves, step + 1, age) if collapse else age + moves.to(torch.int16)
        age.clamp_(max=capacity - 1)
        age[..., capacity + t] = 0
        table[..., t, :] = age
    table.clamp_(min=0)
    return AgeTables(old=table[..., :capacity], inner=table[..., capacity:])


def slots_at_start(tables: AgeTables, cache_given: bool) -> list[int]:
    """For each chunk, how many slots to read: at least as many as exist when it begins, anywhere in the batch."""
    capacity = tables.old.shape[-1]
    chunks = tables.old.shape[2]
    if cache_given or not tables.inner.numel():  # an empty batch has no oldest token
        return [capacity] * chunks
    oldest = tables.inner[:, :, 0, -1, 0]  # age of the sequence's first token after each chunk
    bounds = [torch.zeros_like(oldest.max()), oldest.max() + 1]
    for n in range(1, chunks - 1):
        oldest = tables.old[:, :, n, -1].gather(-1, oldest[..., None])[..., 0]
        bounds.append(oldest.max() + 1)
    return torch.stack(bounds[:chunks]).tolist()
