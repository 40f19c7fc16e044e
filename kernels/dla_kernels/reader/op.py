"""`multi_state_attention`: reads M states per head for a given plan."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dla_kernels.arguments import Backend, check_documents, check_reader, resolve_backend, scale_of
from dla_kernels.autocast import without_autocast
from dla_kernels.cache import Cache
from dla_kernels.compiled_graphs import outside_compiled_graphs
from dla_kernels.documents import lengths_of, pack, unpack
from dla_kernels.plan import JOIN, Plan
from dla_kernels.reader import chunk, naive
from dla_kernels.reader.token import is_decoding, read_token, takes_token


@without_autocast
def multi_state_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slot_weight: Tensor,
    plan: Plan,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    cache: Cache | None = None,
    return_cache: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Cache | None]:
    """Linear attention over the slots of a plan: `o_t = sum_i slot_weight[t, i] scale q_t^T S_i` (DLA, eq. 18).

    Every token's transition, `exp(log_decay)` and with `beta` also `I - beta k k^T`, applies to all slots; its write
    `(beta) k v^T` enters the open slot before the read, so a token sees itself. Gradients with respect to q, k, v,
    slot_weight, log_decay, beta and the cache's states are exact for the given plan; `plan.gate`, if there is one, gets
    the gradient that README.md defines ("Gradients").

    Args:
        q, k: `[B, T, G, K]`. v: `[B, T, H, V]`, H a multiple of G.
        slot_weight: `[B, T, H, M]`, lambda of eq. 18 by age (0 = the open slot).
        plan: from `segment`, `fenwick_plan`, `fixed_plan` or `single_plan`, with M = `plan.capacity`. A plan of packed
            documents, or of tokens that continue a cache, was made with the same `cu_seqlens` and `cache` (or `start`).
        log_decay: `[B, T, H]`, natural logarithm of the decay per token, at most 0; None for no decay.
        beta: `[B, T, H]`; with it the gated delta rule is used, without it plain accumulation.
        scale: of the queries; `K ** -0.5` if None.
        cu_seqlens: `[N + 1]` int, document boundaries in a batch of 1; documents share nothing.
        cache: continue these N sequences instead of starting from nothing.
        return_cache: return the slots after the last token of each of the N sequences.
        backend: "reference" (step by step), "torch" (chunked), "triton" (chunked, on a GPU), or "auto".
    Returns:
        o `[B, T, H, V]` in the type of v, and the cache or None.
    Raises:
        ValueError: shapes, types, devices or sizes that do not fit; the message names the argument.
    """
    check_reader(q, k, v, slot_weight, log_decay, beta)
    check_documents(cu_seqlens, k.shape[0], k.shape[1])
    _check_plan(plan, v, slot_weight.shape[3], v.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1)
    chosen = resolve_backend(backend, k, v, plan.capacity)
    scaled_by = scale_of(scale, k.shape[3])
    if chosen == "triton":
        return _fused(q, k, v, slot_weight, plan, log_decay, beta, scaled_by, cu_seqlens, cache, return_cache)
    return _in_torch(
        q, k, v, slot_weight, plan, log_decay, beta, scaled_by, cu_seqlens, cache, return_cache, chosen == "reference"
    )


@outside_compiled_graphs
def _in_torch(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: Plan, log_decay: Tensor | None, beta: Tensor | None,
    scale: float, cu_seqlens: Tensor | None, cache: Cache | None, return_cache: bool, is_reference: bool,
) -> tuple[Tensor, Cache | None]:  # fmt: skip
    batch, time, heads, _ = v.shape
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    q = q.to(dtype) * scale
    inputs = q, k, v, slot_weight, log_decay, beta
    decodes = cache is not None and is_decoding(inputs, plan, cu_seqlens, cache, dtype)
    if not is_reference and cache is not None and decodes and takes_token(plan):
        _check_cache(cache, (batch, heads, plan.capacity, k.shape[3], v.shape[3]))
        o, after = read_token(q, k, v, slot_weight, plan, log_decay, beta, cache)
        return o.to(v.dtype), after if return_cache else None

    # Documents that continue from a cache, or leave one, are laid out one per row: each needs states of its own anyway.
    apart = cu_seqlens is not None and (cache is not None or return_cache or is_reference)
    sequences = cu_seqlens.numel() - 1 if apart and cu_seqlens is not None else batch
    state = _starting_state(cache, (sequences, heads, plan.capacity, k.shape[3], v.shape[3]), dtype, v.device)
    lengths = lengths_of(cu_seqlens, batch, time, v.device)
    if apart:
        assert cu_seqlens is not None
        q, k, v_in, slot_weight = (unpack(x, cu_seqlens) for x in (q, k, v, slot_weight))
        log_decay, beta = (None if x is None else unpack(x, cu_seqlens) for x in (log_decay, beta))
        plan = replace(
            plan,
            shift=unpack(plan.shift, cu_seqlens, fill=JOIN),
            gate=None if plan.gate is None else unpack(plan.gate, cu_seqlens),
        )
    else:
        v_in = v
    if is_reference or q.shape[1] == 1:  # for one token the chunked form is no faster
        repeats = heads // k.shape[2]
        q, k = (x.repeat_interleave(repeats, 2) for x in (q, k))
        o, state = naive.read_sequences(q, k, v_in, slot_weight, plan, log_decay, beta, state)
    else:
        inside = None if apart else cu_seqlens
        o, state = chunk.read_sequences(
            q, k, v_in, slot_weight, plan, log_decay, beta, state, inside,
            cache_given=cache is not None, return_state=return_cache,
        )  # fmt: skip
    if apart:
        assert cu_seqlens is not None
        o = pack(o, cu_seqlens)
    o = o.to(v.dtype)
    if not return_cache:
        return o, None
    before = torch.zeros_like(lengths) if cache is None else cache.tokens.to(v.device)
    return o, Cache.in_age_order(state, before + lengths, plan.final)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: Plan, log_decay: Tensor | None, beta: Tensor | None,
    scale: float, cu_seqlens: Tensor | None, cache: Cache | None, return_cache: bool,
) -> tuple[Tensor, Cache | None]:  # fmt: skip
    # these import triton, which only some platforms have
    from dla_kernels.decode.planned import decode_planned_step
    from dla_kernels.reader.fused.op import read_sequences

    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    shape = (sequences, v.shape[2], plan.capacity, k.shape[3], v.shape[3])
    inputs = q, k, v, slot_weight, log_decay, beta
    if cache is not None and is_decoding(inputs, plan, cu_seqlens, cache, torch.float32):
        _check_cache(cache, shape)
        o, after = decode_planned_step(q, k, v, slot_weight, plan, log_decay, beta, scale, cache)
        return o, after if return_cache else None
    state = None if cache is None else _starting_state(cache, shape, torch.float32, v.device)
    o, state = read_sequences(
        q, k, v, slot_weight, plan, log_decay, beta, state, cu_seqlens, scale, return_state=return_cache
    )
    if not return_cache:
        return o, None
    lengths = lengths_of(cu_seqlens, v.shape[0], v.shape[1], v.device)
    before = torch.zeros_like(lengths) if cache is None else cache.tokens.to(v.device)
    return o, Cache.in_age_order(state, before + lengths, plan.final)


def _check_plan(plan: Plan, v: Tensor, slots: int, sequences: int) -> None:
    if plan.shift.shape != v.shape[:3]:
        raise ValueError(f"plan has shift of shape {tuple(plan.shift.shape)}; v needs {tuple(v.shape[:3])} ([B, T, H])")
    if plan.shift.device != v.device:
        raise ValueError(f"plan is on {plan.shift.device} and v on {v.device}; make it with device={str(v.device)!r}")
    if plan.capacity != slots:
        raise ValueError(f"the last size of slot_weight is {slots}; the plan has a capacity of {plan.capacity}")
    if plan.final is not None and plan.final.count.shape[0] != sequences:
        raise ValueError(
            f"the plan's number of sequences is {plan.final.count.shape[0]}, and that of this call {sequences}; give "
            "`segment` and the reader the same cu_seqlens"
        )


def _starting_state(cache: Cache | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if cache is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    _check_cache(cache, shape)
    return cache.state_by_age().to(dtype)


def _check_cache(cache: Cache, shape: tuple[int, ...]) -> None:
    if cache.state.shape != shape:
        raise ValueError(
            f"cache holds states {tuple(cache.state.shape)} (sequences, heads, slots, K, V); this call needs {shape}"
        )
