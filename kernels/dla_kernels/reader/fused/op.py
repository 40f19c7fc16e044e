"""Checks and glue between `multi_state_attention` and the operators of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.plan import Plan
from dla_kernels.reader.fused.delta import read_delta
from dla_kernels.reader.fused.plain import read_plain


def read_sequences(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: Plan, log_decay: Tensor | None, beta: Tensor | None,
    state: Tensor | None, cu_seqlens: Tensor | None, scale: float, *, return_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o `[B, T, H, V]` in the type of v and, if asked, the states at the ends of the N sequences (else an empty tensor).

    Shapes as in `multi_state_attention`, q not scaled; `state` `[N, H, M, K, V]` by age, or None. q, k and v are brought to
    the widest of their types, in which all products run; the rest keep theirs.
    """
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    dtype = torch.float32 if dtype == torch.float64 else dtype
    inputs = q.to(dtype), k.to(dtype), v.to(dtype), slot_weight, plan.shift.to(torch.int32).contiguous(), log_decay
    past = None if state is None else state.float()
    options = plan.gate, past, cu_seqlens, scale, plan.collapse, return_state
    o, final = read_plain(*inputs, *options) if beta is None else read_delta(*inputs, beta, *options)
    return o.to(v.dtype), final
