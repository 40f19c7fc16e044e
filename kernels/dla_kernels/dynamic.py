"""`dynamic_linear_attention`: the plan and the read in one call, for training, prefill and decode."""

from __future__ import annotations

from torch import Tensor

from dla_kernels.arguments import Backend
from dla_kernels.cache import Cache
from dla_kernels.reader import multi_state_attention
from dla_kernels.segmentation import segment
from dla_kernels.segmentation.op import GateKind


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

    Args, Returns, Raises: those of the two functions; the score sees the k and v given here. A cache returned by one
    call and given to the next makes prefill in pieces and token-by-token decode equal to one call over everything.
    """
    plan = segment(k, v, capacity, threshold, cu_seqlens, backend, gate=gate, gate_width=gate_width, cache=cache)
    return multi_state_attention(
        q, k, v, slot_weight, plan, log_decay, beta, scale, cu_seqlens, cache, return_cache, backend
    )  # fmt: skip
