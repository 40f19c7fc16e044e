# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""One token of dynamic linear attention in one launch: score, boundary, merge, transition, write and read.

At a boundary the younger member of the pair that merges becomes the open slot, after its content was added to the older
one; or, where there is room, the slot of the highest age, which is empty.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.cache import Cache
from dla_kernels.decode.slots import AHEAD, advance, age_after, blocks_of, lag_after, later, past_of
from dla_kernels.operators import operator
from dla_kernels.plan import SegmentState
from dla_kernels.segmentation.fused.merges import age_slots, youngest_of_sparsest_pair
from dla_kernels.segmentation.fused.paths import information


def decode_step(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, threshold: Tensor, log_decay: Tensor | None,
    beta: Tensor | None, scale: float, cache: Cache,
) -> tuple[Tensor, Cache]:  # fmt: skip
    """The next token of N sequences: o `[N, 1, H, V]` and the cache after it.

    q, k `[N, 1, G, K]`, v `[N, 1, H, V]`, slot_weight `[N, 1, H, M]`, threshold `[H]`, log_decay, beta `[N, 1, H]` or None.
    Not differentiable; the cache must come with a segmentation.
    """
    assert cache.segment is not None
    if not cache.is_donated:
        cache = cache.settled()
    assert cache.segment is not None
    tensors = [None if x is None else x[:, 0] for x in (q, k, v, slot_weight, log_decay, beta)]
    segment = cache.segment.open_sum, cache.segment.score_sum, cache.segment.count
    lag = None
    if cache.is_donated:
        state, lag = past_of(cache, delta=beta is not None)
        o, age, open_sum, score_sum, count, following = decode_in_place(
            *tensors, threshold, state, cache.age, *segment, lag, scale
        )
        lag = None if lag is None else following
    else:
        o, state, age, open_sum, score_sum, count = decode_operator(
            *tensors, threshold, cache.state, cache.age, *segment, scale
        )
    segment = SegmentState(open_sum=open_sum, score_sum=score_sum, count=count)
    after = Cache(state=state, age=age, tokens=cache.tokens + 1, segment=segment, lag=lag, is_donated=cache.is_donated)
    return o[:, None], after


@operator("dla::decode")
def decode_operator(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, log_decay: Tensor | None, beta: Tensor | None,
    threshold: Tensor, state: Tensor, age: Tensor, open_sum: Tensor, score_sum: Tensor, count: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns o `[N, H, V]`, then state, age, open_sum, score_sum and count after the token; no tensor has a time
    dimension."""
    after = torch.empty_like(state)
    o, age, open_sum, score_sum, count, _ = _launch(
        q, k, v, slot_weight, log_decay, beta, threshold, state.contiguous(), after, age, open_sum, score_sum, count, None,
        scale,
    )  # fmt: skip
    return o, after, age, open_sum, score_sum, count


@decode_operator.register_fake
def _(q, k, v, slot_weight, log_decay, beta, threshold, state, age, open_sum, score_sum, count, scale):
    return tuple(x.new_empty(x.shape) for x in (v, state, age, open_sum, score_sum, count))


@operator("dla::decode_in_place", changes=("state",))
def decode_in_place(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, log_decay: Tensor | None, beta: Tensor | None,
    threshold: Tensor, state: Tensor, age: Tensor, open_sum: Tensor, score_sum: Tensor, count: Tensor,
    lag: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Updates `state`, which is contiguous, in place and returns o, age, open_sum, score_sum, count and lag after the
    token. lag `[N, H, M, 2]` is given with plain decay only; otherwise the returned one is empty."""
    return _launch(
        q, k, v, slot_weight, log_decay, beta, threshold, state, state, age, open_sum, score_sum, count, lag, scale
    )


@decode_in_place.register_fake
def _(q, k, v, slot_weight, log_decay, beta, threshold, state, age, open_sum, score_sum, count, lag, scale):
    return *(x.new_empty(x.shape) for x in (v, age, open_sum, score_sum, count)), lag_after(lag, age)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, log_decay: Tensor | None, beta: Tensor | None,
    threshold: Tensor, state: Tensor, state_after: Tensor, age: Tensor, open_sum: Tensor, score_sum: Tensor,
    count: Tensor, lag: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Reads `state` and writes `state_after`, which may be the same tensor; returns what `decode_in_place` returns."""
    (sequences, groups, key_dim), (_, heads, value_dim) = k.shape, v.shape
    slots = slot_weight.shape[-1]
    q, k, v, slot_weight, threshold, age, open_sum, score_sum, count = (
        x.contiguous() for x in (q, k, v, slot_weight, threshold, age, open_sum, score_sum, count)
    )
    after = [torch.empty_like(x) for x in (v, age, open_sum, score_sum, count)]
    o, new_age, new_open, new_sums, new_count = after
    new_lag = lag_after(lag, age)
    block_k, block_v = blocks_of(key_dim, value_dim)
    decode_kernel[(sequences * heads, triton.cdiv(value_dim, block_v))](
        q, k, v, slot_weight, v if log_decay is None else log_decay.contiguous(), v if beta is None else beta.contiguous(),
        threshold, state, age, open_sum, score_sum, count, v if lag is None else lag.contiguous(),
        o, state_after, new_age, new_open, new_sums, new_count, v if lag is None else new_lag, scale,
        H=heads, G=groups, K=key_dim, V=value_dim, M=slots, MP=max(2, triton.next_power_of_2(slots)),
        BK=block_k, BV=block_v, HAS_DECAY=log_decay is not None, HAS_BETA=beta is not None, LAZY=lag is not None,
        AHEAD=AHEAD, num_warps=4,
    )  # fmt: skip
    return o, new_age, new_open, new_sums, new_count, new_lag


@triton.jit
def decode_kernel(
    q_ptr, k_ptr, v_ptr, slot_weight_ptr, log_decay_ptr, beta_ptr, threshold_ptr,
    state_ptr, age_ptr, open_ptr, sums_ptr, count_ptr, lag_ptr,
    o_ptr, new_state_ptr, new_age_ptr, new_open_ptr, new_sums_ptr, new_count_ptr, new_lag_ptr, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_BETA: tl.constexpr, LAZY: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """One program per sequence, head and block of V. Each computes the score itself, so that all decide alike without
    synchronizing; this reads one matrix in addition to the M states."""
    nh = tl.program_id(0).to(tl.int64)
    n = nh // H
    h = nh % H
    i = tl.arange(0, BK)
    in_k = i < K
    slot = tl.arange(0, MP)
    q = tl.load(q_ptr + (n * G + h // (H // G)) * K + i, mask=in_k, other=0.0).to(tl.float32) * scale
    k = tl.load(k_ptr + (n * G + h // (H // G)) * K + i, mask=in_k, other=0.0).to(tl.float32)

    # eq. 13: the score; reductions across threads come after the loop
    dots = tl.zeros((BK, BV), tl.float32)
    squares = tl.zeros((BK, BV), tl.float32)
    v_squares = tl.zeros((BV,), tl.float32)
    for start in tl.range(0, V, BV, num_stages=AHEAD):
        j = start + tl.arange(0, BV)
        v = tl.load(v_ptr + nh * V + j, mask=j < V, other=0.0).to(tl.float32)
        s = tl.load(
            open_ptr + nh * (K * V) + i[:, None] * V + j[None, :], mask=in_k[:, None] & (j < V)[None, :], other=0.0
        )
        dots += s * v[None, :]
        squares += s * s
        v_squares += v * v
    own = tl.sum(v_squares) * tl.sum(k * k)
    sums = tl.load(sums_ptr + nh * M + slot, mask=slot < M, other=0.0)
    count = tl.load(count_ptr + nh * M + slot, mask=slot < M, other=0)
    age = tl.load(age_ptr + nh * M + slot, mask=slot < M, other=MP)
    used = tl.sum((count > 0).to(tl.int32))
    score = tl.where(used == 0, 0.0, information(tl.sum(tl.sum(dots, 1) * k), tl.sum(squares), own))

    # eqs. 14, 16, 17: the boundary, the merge
    opens = (used == 0) | (score >= tl.load(threshold_ptr + h))
    if M == 1:
        opens = used < 0
    merges = opens & (used == M)
    younger = youngest_of_sparsest_pair(sums, count, slot, M, MP)
    shift = tl.where(opens, tl.where(merges, younger, M), -1)
    sums = tl.where(opens, age_slots(sums, slot, shift, 0.0), sums) + tl.where(slot == 0, score, 0.0)
    count = tl.where(opens, age_slots(count, slot, shift, 0), count) + (slot == 0).to(tl.int32)
    freed = tl.where(merges, younger, M - 1)  # the age of the physical slot that becomes the open one
    after = age_after(age, opens, freed)
    weight = tl.load(slot_weight_ptr + nh * M + after, mask=slot < M, other=0.0).to(tl.float32)
    # physical slots: the freed one, the one it was merged into, the open one
    source = tl.sum(tl.where(age == freed, slot, 0))
    older = tl.sum(tl.where(age == freed + 1, slot, 0))
    newest = tl.sum(tl.where(after == 0, slot, 0))
    if tl.program_id(1) == 0:
        tl.store(new_sums_ptr + nh * M + slot, sums, mask=slot < M)
        tl.store(new_count_ptr + nh * M + slot, count, mask=slot < M)
        tl.store(new_age_ptr + nh * M + slot, after, mask=slot < M)

    # eq. 15 and the transition of all slots, one block of V
    j = tl.program_id(1) * BV + tl.arange(0, BV)
    in_v = j < V
    inside = in_k[:, None] & in_v[None, :]
    block = i[:, None] * V + j[None, :]
    v = tl.load(v_ptr + nh * V + j, mask=in_v, other=0.0).to(tl.float32)
    s = tl.load(open_ptr + nh * (K * V) + block, mask=inside, other=0.0)
    tl.store(new_open_ptr + nh * (K * V) + block, tl.where(opens, 0.0, s) + k[:, None] * v[None, :], mask=inside)
    log_decay, decay = 0.0, 1.0
    lagging = weight  # not read unless LAZY
    if HAS_DECAY:
        log_decay = tl.load(log_decay_ptr + nh).to(tl.float32)
        decay = tl.exp(log_decay)
    if LAZY:
        at = (nh * M + slot) * 2
        lag, lost = later(lag_ptr, at, slot < M, log_decay)
        lagging = tl.exp(lag)
        if tl.program_id(1) == 0:
            is_written = (slot == newest) | (merges & (slot == older))
            tl.store(new_lag_ptr + at, tl.where(is_written, 0.0, lag), mask=slot < M)
            tl.store(new_lag_ptr + at + 1, tl.where(is_written, 0.0, lost), mask=slot < M)
        decay = tl.sum(tl.where(slot == source, lagging, 0.0))
    beta = 0.0
    if HAS_BETA:
        beta = tl.load(beta_ptr + nh).to(tl.float32)
    base = nh * M * (K * V) + block
    merged = tl.load(state_ptr + base + source * (K * V), mask=inside & merges, other=0.0) * decay
    seen = advance(
        state_ptr, new_state_ptr, age_ptr, base, inside, k, v, beta, decay, lagging, weight, merged, slot,
        opens, source, 0, older, newest, merges, K, V, M, BK, BV, HAS_BETA, LAZY, False, AHEAD,
    )  # fmt: skip
    tl.store(o_ptr + nh * V + j, tl.sum(q[:, None] * seen, 0).to(o_ptr.dtype.element_ty), mask=in_v)
