"""`segment`: the plan of Dynamic Linear Attention for given keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.arguments import (
    Backend,
    GateKind,
    check_capacity,
    check_documents,
    check_gate,
    check_keys_values,
    resolve_backend,
    threshold_of,
)
from dla_kernels.autocast import without_autocast
from dla_kernels.cache import Cache
from dla_kernels.compiled_graphs import outside_compiled_graphs
from dla_kernels.documents import first_tokens, token_counts
from dla_kernels.plan import Plan, SegmentState
from dla_kernels.segmentation import host, naive


@without_autocast
def segment(
    k: Tensor,
    v: Tensor,
    capacity: int = 30,
    threshold: float | Tensor = 0.6,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
    *,
    gate: GateKind = "hard",
    gate_width: float = 0.1,
    cache: Cache | None = None,
) -> Plan:
    """Cuts sequences into at most `capacity` segments by their content (DLA, arXiv 2606.10650, eqs. 13 to 17).

    A token whose own state `k_t v_t^T` points away from the sum over the open segment (score `I_t >= threshold`) opens
    a slot; when all slots are in use, the adjacent pair with the lowest score density merges first. Scores are float32
    whatever the inputs; neither decay nor delta rule enters them, so a plan is a function of (k, v) alone.

    Args:
        k: `[B, T, G, K]`, keys. v: `[B, T, H, V]`, values, H a multiple of G.
        capacity: M, the largest number of slots; with 1 every token joins.
        threshold: tau of eq. 14 in [0, 2]: a number, or a tensor `[H]` (which may require a gradient).
        cu_seqlens: `[N + 1]` int, document boundaries in a batch of 1; documents share nothing.
        backend: "reference" (step by step), "torch", "triton", or "auto".
        gate: "straight_through" gives the plan a `gate` through which a gradient reaches k, v and the threshold: the
            value is the hard decision, the derivative that of `sigmoid((I_t - tau) / gate_width)`, the open segment
            taken as constant.
        gate_width: the width of that sigmoid, in units of the score; above 0.
        cache: continue these N sequences instead of starting from nothing. All other gradients reach back into the call
            that returned it, but its gates get none from what this call reads.
    Returns:
        The plan, with `final` set so that a cache can be made from it.
    Raises:
        ValueError: shapes, types, devices or sizes that do not fit; the message names the argument.
    """
    check_keys_values(k, v)
    check_capacity(capacity)
    check_documents(cu_seqlens, k.shape[0], k.shape[1])
    check_gate(gate, gate_width)
    heads = v.shape[2]
    tau = threshold_of(threshold, heads, v.device)
    sequences = k.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    state = _starting_state(cache, sequences, heads, capacity, k.shape[3], v.shape[3], k.device)
    width = gate_width if gate == "straight_through" else None
    chosen = resolve_backend(backend, k, v, capacity)
    if chosen == "reference":
        shift, score, gates, final = _reference(k, v, tau, state, cu_seqlens, width)
    elif chosen == "triton":
        shift, score, gates, final = _fused(k, v, tau, state, cu_seqlens, width)
    else:
        shift, score, gates, final = _scanned(k, v, tau, state, cu_seqlens, width)
    return Plan(shift=shift, score=score, capacity=capacity, gate=gates if width is not None else None, final=final)


@outside_compiled_graphs
def _reference(
    k: Tensor, v: Tensor, tau: Tensor, state: SegmentState, cu_seqlens: Tensor | None, width: float | None
) -> tuple[Tensor, Tensor, Tensor, SegmentState]:
    k = k.repeat_interleave(v.shape[2] // k.shape[2], 2)
    with torch.set_grad_enabled(torch.is_grad_enabled() and width is not None):
        if cu_seqlens is None:
            return naive.segment_sequences(k, v, tau, state, width)
        lengths = token_counts(cu_seqlens)
        parts = []
        for n, (keys, values) in enumerate(zip(k.split(lengths, 1), v.split(lengths, 1), strict=True)):
            past = SegmentState(
                open_sum=state.open_sum[n : n + 1], score_sum=state.score_sum[n : n + 1], count=state.count[n : n + 1]
            )
            parts.append(naive.segment_sequences(keys, values, tau, past, width))
        finals = [part[3] for part in parts]
        final = SegmentState(
            open_sum=torch.cat([x.open_sum for x in finals]),
            score_sum=torch.cat([x.score_sum for x in finals]),
            count=torch.cat([x.count for x in finals]),
        )
        shift, score, gates = (torch.cat([part[i] for part in parts], 1) for i in range(3))
        return shift, score, gates, final


@outside_compiled_graphs
def _scanned(
    k: Tensor, v: Tensor, tau: Tensor, state: SegmentState, cu_seqlens: Tensor | None, width: float | None
) -> tuple[Tensor, Tensor, Tensor | None, SegmentState]:
    shift, score, final = host.scan_sequences(k.detach(), v.detach(), tau.detach(), state, cu_seqlens)
    if width is None:
        return shift, score, None, final
    first = _nothing_before(state, cu_seqlens, k.shape[1])
    gates = host.StraightThroughGate.apply(k, v, tau, shift, score, first, state.open_sum, cu_seqlens, width)
    return shift, score, gates, final


def _fused(
    k: Tensor, v: Tensor, tau: Tensor, state: SegmentState, cu_seqlens: Tensor | None, width: float | None
) -> tuple[Tensor, Tensor, Tensor | None, SegmentState]:
    from dla_kernels.segmentation.fused import gated  # imports triton, which only some platforms have

    shift, score, norm, final = gated.segment_sequences(k.detach(), v.detach(), tau.detach(), state, cu_seqlens)
    if width is None:
        return shift, score, None, final
    first = _nothing_before(state, cu_seqlens, k.shape[1])
    gates = gated.straight_through_gate(k, v, tau, shift, score, norm, first, state.open_sum, cu_seqlens, width)
    return shift, score, gates, final


def _starting_state(
    cache: Cache | None, sequences: int, heads: int, capacity: int, key_dim: int, value_dim: int, device: torch.device
) -> SegmentState:
    if cache is None:
        return naive.empty_state(sequences, heads, capacity, key_dim, value_dim, device)
    if cache.segment is None:
        raise ValueError("cache has no segmentation (it comes from a plan that does not look at the content)")
    segment = cache.segment
    expected = (sequences, heads, capacity)
    for found in (segment.count, segment.score_sum):
        if found.shape != expected:
            raise ValueError(
                f"cache holds slots {tuple(found.shape)} (sequences, heads, capacity); this call needs {expected}"
            )
    expected = (sequences, heads, key_dim, value_dim)
    if segment.open_sum.shape != expected:
        raise ValueError(
            f"cache holds an open segment {tuple(segment.open_sum.shape)} (sequences, heads, K, V); "
            f"this call needs {expected}"
        )
    return segment


def _nothing_before(state: SegmentState, cu_seqlens: Tensor | None, time: int) -> Tensor:
    """`[B, T, H]` bool: first tokens of sequences that start without any slot."""
    empty = (state.count == 0).all(-1)  # [N, H]
    if cu_seqlens is None:
        return first_tokens(None, time, empty.device)[None, :, None] & empty[:, None, :]
    nothing = torch.zeros(1, time, empty.shape[1], dtype=torch.bool, device=empty.device)
    nothing[0, cu_seqlens[:-1].long().to(empty.device)] = empty
    return nothing
