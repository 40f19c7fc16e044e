# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""One token of each sequence for a given plan, in one launch: merge, transition, write and read.

The baselines decode in this way, so that a comparison with them compares memories, not launches. Which slots meet is
known by age, as in reader/token_loop.py, which does the same on the host:

* a plan that shifts: the slot of age `shift` is added to the next older one, and becomes the open slot;
* a plan that collapses: all slots up to age `shift` are added to that of the next age, and are empty then. Ages stay.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.cache import Cache
from dla_kernels.decode.slots import AHEAD, advance, age_after, blocks_of, lag_after, later, past_of
from dla_kernels.operators import operator
from dla_kernels.plan import Plan


def decode_planned_step(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: Plan, log_decay: Tensor | None, beta: Tensor | None,
    scale: float, cache: Cache,
) -> tuple[Tensor, Cache]:  # fmt: skip
    """The next token of N sequences: o `[N, 1, H, V]` in the type of v, and the cache after it.

    q, k `[N, 1, G, K]`, v `[N, 1, H, V]`, slot_weight `[N, 1, H, M]`, log_decay, beta `[N, 1, H]` or None. Not
    differentiable; the cache's states are float32.
    """
    tensors = [None if x is None else x[:, 0] for x in (q, k, v, slot_weight, plan.shift, log_decay, beta)]
    lag = None
    if cache.is_donated:
        state, lag = past_of(cache, delta=beta is not None)
        o, age, following = decode_planned_in_place(*tensors, state, cache.age, lag, plan.collapse, scale)
        lag = None if lag is None else following
    else:
        o, state, age = decode_planned(*tensors, cache.settled().state, cache.age, plan.collapse, scale)
    after = Cache(
        state=state, age=age, tokens=cache.tokens + 1, segment=plan.final, lag=lag, is_donated=cache.is_donated
    )
    return o[:, None], after


@operator("dla::decode_planned")
def decode_planned(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor, log_decay: Tensor | None, beta: Tensor | None,
    state: Tensor, age: Tensor, collapse: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns o `[N, H, V]`, then state and age after the token; no tensor has a time dimension."""
    after = torch.empty(state.shape, dtype=state.dtype, device=state.device)
    o, age, _ = _launch(
        q, k, v, slot_weight, shift, log_decay, beta, state.contiguous(), after, age, None, collapse, scale
    )
    return o, after, age


@decode_planned.register_fake
def _(q, k, v, slot_weight, shift, log_decay, beta, state, age, collapse, scale):
    return tuple(x.new_empty(x.shape) for x in (v, state, age))


@operator("dla::decode_planned_in_place", changes=("state",))
def decode_planned_in_place(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor, log_decay: Tensor | None, beta: Tensor | None,
    state: Tensor, age: Tensor, lag: Tensor | None, collapse: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Updates `state`, which is contiguous, in place and returns o, age and lag after the token. lag `[N, H, M, 2]` is
    given with plain decay only; otherwise the returned one is empty."""
    return _launch(q, k, v, slot_weight, shift, log_decay, beta, state, state, age, lag, collapse, scale)


@decode_planned_in_place.register_fake
def _(q, k, v, slot_weight, shift, log_decay, beta, state, age, lag, collapse, scale):
    return v.new_empty(v.shape), age.new_empty(age.shape), lag_after(lag, age)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor, log_decay: Tensor | None, beta: Tensor | None,
    state: Tensor, state_after: Tensor, age: Tensor, lag: Tensor | None, collapse: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Reads `state` and writes `state_after`, which may be the same tensor; returns what `decode_planned_in_place`
    returns."""
    (sequences, groups, key_dim), (_, heads, value_dim) = k.shape, v.shape
    slots = slot_weight.shape[-1]
    q, k, v, slot_weight, shift, age = (x.contiguous() for x in (q, k, v, slot_weight, shift, age))
    o, new_age, new_lag = torch.empty_like(v), torch.empty_like(age), lag_after(lag, age)
    block_k, block_v = blocks_of(key_dim, value_dim)
    decode_planned_kernel[(sequences * heads, triton.cdiv(value_dim, block_v))](
        q, k, v, slot_weight, shift, v if log_decay is None else log_decay.contiguous(),
        v if beta is None else beta.contiguous(), state, age, v if lag is None else lag.contiguous(),
        o, state_after, new_age, v if lag is None else new_lag, scale,
        H=heads, G=groups, K=key_dim, V=value_dim, M=slots, MP=max(2, triton.next_power_of_2(slots)),
        BK=block_k, BV=block_v, HAS_DECAY=log_decay is not None, HAS_BETA=beta is not None, LAZY=lag is not None,
        COLLAPSE=collapse, AHEAD=AHEAD, num_warps=4,
    )  # fmt: skip
    return o, new_age, new_lag


@triton.jit
def decode_planned_kernel(
    q_ptr, k_ptr, v_ptr, slot_weight_ptr, shift_ptr, log_decay_ptr, beta_ptr, state_ptr, age_ptr, lag_ptr,
    o_ptr, new_state_ptr, new_age_ptr, new_lag_ptr, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_BETA: tl.constexpr, LAZY: tl.constexpr,
    COLLAPSE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One program per sequence, head and block of V."""
    nh = tl.program_id(0).to(tl.int64)
    n = nh // H
    h = nh % H
    i = tl.arange(0, BK)
    in_k = i < K
    slot = tl.arange(0, MP)
    q = tl.load(q_ptr + (n * G + h // (H // G)) * K + i, mask=in_k, other=0.0).to(tl.float32) * scale
    k = tl.load(k_ptr + (n * G + h // (H // G)) * K + i, mask=in_k, other=0.0).to(tl.float32)
    j = tl.program_id(1) * BV + tl.arange(0, BV)
    in_v = j < V
    v = tl.load(v_ptr + nh * V + j, mask=in_v, other=0.0).to(tl.float32)
    inside = in_k[:, None] & in_v[None, :]
    base = nh * M * (K * V) + i[:, None] * V + j[None, :]

    log_decay, decay, beta = 0.0, 1.0, 0.0
    if HAS_DECAY:
        log_decay = tl.load(log_decay_ptr + nh).to(tl.float32)
        decay = tl.exp(log_decay)
    if HAS_BETA:
        beta = tl.load(beta_ptr + nh).to(tl.float32)
    age_ptr += nh * M
    age = tl.load(age_ptr + slot, mask=slot < M, other=MP)
    shift = tl.load(shift_ptr + nh)
    opens = (shift >= 0) & (M > 1)
    if COLLAPSE:
        target = tl.where(opens, tl.minimum(shift + 1, M - 1), 0)
        after = age
        is_gone = age < target
        older = tl.sum(tl.where(age == target, slot, 0))
        source = older  # there is more than one, see `target`
    else:
        # Where a plan sees room, the slot of the highest age holds nothing. If it does, the oldest two are added.
        target = 0
        freed = tl.minimum(shift, M - 1)
        after = age_after(age, opens, freed)
        source = tl.sum(tl.where(age == freed, slot, 0))
        is_gone = opens & (slot == source)
        older = tl.sum(tl.where(age == tl.where(freed == M - 1, M - 2, freed + 1), slot, 0))
    newest = tl.sum(tl.where(after == 0, slot, 0))
    weight = tl.load(slot_weight_ptr + nh * M + after, mask=slot < M, other=0.0).to(tl.float32)
    if tl.program_id(1) == 0:
        tl.store(new_age_ptr + nh * M + slot, after, mask=slot < M)
    lagging = weight  # not read unless LAZY
    if LAZY:
        at = (nh * M + slot) * 2
        lag, lost = later(lag_ptr, at, slot < M, log_decay)
        lagging = tl.exp(lag)
        if tl.program_id(1) == 0:
            is_written = is_gone | (slot == newest) | (opens & (slot == older))
            tl.store(new_lag_ptr + at, tl.where(is_written, 0.0, lag), mask=slot < M)
            tl.store(new_lag_ptr + at + 1, tl.where(is_written, 0.0, lost), mask=slot < M)

    if COLLAPSE:
        merged = tl.zeros((BK, BV), tl.float32)
        for p in tl.range(0, M, num_stages=AHEAD):
            joins = tl.load(age_ptr + p) < target
            if LAZY:
                decay = tl.sum(tl.where(slot == p, lagging, 0.0))
            merged += decay * tl.load(state_ptr + base + p * (K * V), mask=inside & joins, other=0.0)
    else:
        if LAZY:
            decay = tl.sum(tl.where(slot == source, lagging, 0.0))
        merged = decay * tl.load(state_ptr + base + source * (K * V), mask=inside & opens, other=0.0)
    seen = advance(
        state_ptr, new_state_ptr, age_ptr, base, inside, k, v, beta, decay, lagging, weight, merged, slot,
        opens, source, target, older, newest, opens, K, V, M, BK, BV, HAS_BETA, LAZY, COLLAPSE, AHEAD,
    )  # fmt: skip
    tl.store(o_ptr + nh * V + j, tl.sum(q[:, None] * seen, 0).to(o_ptr.dtype.element_ty), mask=in_v)
