"""The chunked reader in torch, for any device: exact, memory linear in T.

Inside a chunk tokens are read pairwise with the weight of the slot each is in; everything older is read from the M
carried states in one product of inner length M K. See transitions.py for the algebra, ages.py for the ages, slots.py
for the states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.plan import JOIN, Plan
from dla_kernels.reader.ages import age_tables
from dla_kernels.reader.slots import read_slots
from dla_kernels.reader.transitions import ChunkDocuments, transitions

CHUNK = 64
"""Tokens in a chunk (C). Per token, pairs inside a chunk cost in proportion to C, moving the states to M K V / C: this
is near the minimum of their sum."""


def read_sequences(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slot_weight: Tensor,
    plan: Plan,
    log_decay: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
    cu_seqlens: Tensor | None,
    *,
    cache_given: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """Reads sequences that continue from `state`; arguments as in `multi_state_attention`, with q already scaled.

    Args:
        state: `[B, H, M, K, V]` by age, in the type to compute in. cache_given: whether it holds anything.
        cu_seqlens: documents packed in one row that start from nothing and leave no state.
        return_state: whether the state after the last token is needed.
    Returns:
        o `[B, T, H, V]` in the type of `state`; the state after the last token, meaningless if not needed.
    """
    batch, time, heads, value_dim = v.shape
    dtype = state.dtype
    size = min(CHUNK, time)
    chunks = -(-time // size)

    def split(x: Tensor) -> Tensor:
        """`[B, T, heads, ...]` -> `[B, heads, N, C, ...]`, padded with zeros."""
        x = _pad(x, chunks * size, 0)
        return x.reshape(batch, chunks, size, *x.shape[2:]).movedim(3, 1)

    shift = _pad(plan.shift, chunks * size, JOIN).reshape(batch, chunks, size, heads).movedim(3, 1)
    tables = age_tables(shift, plan.capacity, collapse=plan.collapse)
    documents = None
    if cu_seqlens is not None:
        index = torch.arange(chunks * size, device=v.device).clamp(max=time - 1)
        number = torch.searchsorted(cu_seqlens.to(v.device), index, right=True)
        documents = ChunkDocuments.of(number.reshape(chunks, size))
    step = transitions(
        split(q.to(dtype)),
        split(k.to(dtype)),
        None if log_decay is None else split(log_decay.to(dtype)),
        None if beta is None else split(beta.to(dtype)),
        heads,
        documents,
    )
    gate = None if plan.gate is None else split(plan.gate.to(dtype))
    o, state = read_slots(
        step,
        split(v.to(dtype)),
        split(slot_weight.to(dtype)),
        state,
        gate,
        tables,
        documents,
        cache_given=cache_given,
        return_state=return_state,
    )
    o = o.movedim(1, 3).reshape(batch, chunks * size, heads, value_dim)
    return o[:, :time], state


def _pad(x: Tensor, time: int, fill: float) -> Tensor:
    """Pads dimension 1 to `time` with `fill`."""
    missing = time - x.shape[1]
    if not missing:
        return x
    return torch.cat((x, x.new_full((x.shape[0], missing, *x.shape[2:]), fill)), 1)
