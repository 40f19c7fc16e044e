"""`dynamic_linear_attention`: the plan and the read in one call, for training, prefill and decode."""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.arguments import Backend, GateKind, check_gate, check_reader, resolve_backend, scale_of, threshold_of
from dla_kernels.cache import Cache
from dla_kernels.reader import multi_state_attention
from dla_kernels.segmentation import segment


def dynamic_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slot_weight: Tensor,
    capacity: int = 30,
    threshold: float | Tensor = 0.6,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    cache: Cache | None = None,
    return_cache: bool = False,
    backend: Backend = "auto",
    *,
    gate: GateKind = "hard",
    gate_width: float = 0.1,
) -> tuple[Tensor, Cache | None]:
    """Dynamic Linear Attention (arXiv 2606.10650): `segment`, then `multi_state_attention`.

    Args, Returns, Raises: as in these two functions; the score is computed from the k and v given here. With the cache
    of one call passed to the next, prefill in pieces and token-by-token decode equal one call over everything. With the
    Triton backend, a single token that continues a cache and needs no gradient takes one launch (decode/).
    """
    inputs = [q, k, v, slot_weight, log_decay, beta]
    if cache is not None and _decodes(inputs, threshold, cache, capacity, cu_seqlens, backend):
        from dla_kernels.decode.dynamic import decode_step  # imports triton, which only some platforms have

        check_reader(q, k, v, slot_weight, log_decay, beta)
        check_gate(gate, gate_width)
        tau = threshold_of(threshold, v.shape[2], v.device)
        o, after = decode_step(q, k, v, slot_weight, tau, log_decay, beta, scale_of(scale, k.shape[3]), cache)
        return o, after if return_cache else None
    plan = segment(k, v, capacity, threshold, cu_seqlens, backend, gate=gate, gate_width=gate_width, cache=cache)
    return multi_state_attention(
        q, k, v, slot_weight, plan, log_decay, beta, scale, cu_seqlens, cache, return_cache, backend
    )  # fmt: skip


def _decodes(
    inputs: list[Tensor | None], threshold: float | Tensor, cache: Cache, capacity: int, cu_seqlens: Tensor | None,
    backend: Backend,
) -> bool:  # fmt: skip
    """Whether the fused step applies: one token of each sequence, a cache that fits, Triton, and no gradient wanted."""
    _, k, v, slot_weight, *_ = inputs
    assert k is not None
    assert v is not None
    assert slot_weight is not None
    if slot_weight.ndim != 4 or slot_weight.shape[-1] != capacity:
        return False  # the general path says what is wrong
    fits = k.ndim == 4 and v.ndim == 4 and k.shape[1] == 1 and cu_seqlens is None and cache.segment is not None
    if not fits or cache.state.shape != (k.shape[0], v.shape[2], capacity, k.shape[3], v.shape[3]):
        return False
    if cache.state.dtype != torch.float32 or resolve_backend(backend, k, v, capacity) != "triton":
        return False
    watched = [*inputs, threshold, cache.state]
    return not (torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in watched))
