# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""What a decoding step does to the slots, however it knows which ones merge."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.cache import Cache

AHEAD = 3
"""Stages of the loops' pipelines: the loads of the next two steps are in flight while one is computed."""


def blocks_of(key_dim: int, value_dim: int) -> tuple[int, int]:
    """(BK, BV): all of K in one block, for the delta rule's k^T S; several tiles of BK x BV float32 are in registers."""
    block_k = 1 << (key_dim - 1).bit_length()
    return block_k, 32 if block_k <= 128 and value_dim > 16 else 16


def past_of(cache: Cache, *, delta: bool) -> tuple[Tensor, Tensor | None]:
    """States and lag `[N, H, M, 2]` for a step that updates `cache` in place; the lag is None if it writes all slots."""
    if delta:
        return cache.settled().state.contiguous(), None
    lag = cache.lag
    if lag is None:
        lag = torch.zeros(*cache.age.shape, 2, dtype=torch.float32, device=cache.state.device)
    return cache.state.contiguous(), lag


def lag_after(lag: Tensor | None, age: Tensor) -> Tensor:
    """Room for the lag after a step, empty if there is none: what an operator returns is always a tensor."""
    return age.new_empty(0 if lag is None else lag.shape, dtype=torch.float32)


@triton.jit
def age_after(age, opens, freed):
    """Eq. 17 for physical slots: at a boundary the slot of age `freed` becomes the youngest, and younger ones age by 1."""
    return tl.where(opens, tl.where(age < freed, age + 1, tl.where(age == freed, 0, age)), age)


@triton.jit
def later(lag_ptr, at, is_slot, log_decay):
    """(lag, what rounding took from it) of all slots, a step after that of `lag_ptr`. The sum may run over very many
    steps: what is lost is added at the next one (Kahan)."""
    before = tl.load(lag_ptr + at, mask=is_slot, other=0.0)
    added = tl.load(lag_ptr + at + 1, mask=is_slot, other=0.0) + log_decay
    lag = before + added
    return lag, added - (lag - before)


@triton.jit
def advance(
    state_ptr, new_state_ptr, age_ptr, base, inside, k, v, beta, decay, lagging, weight, merged, slot,
    opens, source, target, older, newest, merges,
    K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    HAS_BETA: tl.constexpr, LAZY: tl.constexpr, COLLAPSE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Merge, transition and write of all slots, for one block of V; returns `[BK, BV]`, their sum times `weight`.

    `merged` is added to slot `older`, v is written to slot `newest`. The content of slot `source` goes away if `opens`;
    with COLLAPSE, that of all slots whose age at `age_ptr` is below `target`. LAZY: `lagging` has each slot's decay
    instead of `decay`, and slots that are only read are not stored. The sum over K comes after the loop, so that the
    read needs no reduction within it.
    """
    seen = tl.zeros((BK, BV), tl.float32)
    for p in tl.range(0, M, num_stages=AHEAD):
        if LAZY:
            decay = tl.sum(tl.where(slot == p, lagging, 0.0))
        if COLLAPSE:
            is_gone = tl.load(age_ptr + p) < target
        else:
            is_gone = opens & (p == source)
        # slots differ by scalar factors; `tl.where` on a state would cost one more instruction per element
        kept = tl.where(is_gone, 0.0, decay)
        state = kept * tl.load(state_ptr + base + p * (K * V), mask=inside, other=0.0)
        state += tl.where(p == older, 1.0, 0.0) * merged
        written = tl.where(p == newest, 1.0, 0.0) * v
        if HAS_BETA:
            written = beta * (written - tl.sum(k[:, None] * state, 0))
        state += k[:, None] * written[None, :]
        if LAZY:  # all other slots stay as they are and lag further behind
            is_changed = (p == newest) | (merges & (p == older))
            if COLLAPSE:
                is_changed = is_changed | is_gone
            tl.store(new_state_ptr + base + p * (K * V), state, mask=inside & is_changed)
        else:
            tl.store(new_state_ptr + base + p * (K * V), state, mask=inside)
        seen += tl.sum(tl.where(slot == p, weight, 0.0)) * state
    return seen
