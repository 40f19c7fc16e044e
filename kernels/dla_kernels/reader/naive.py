"""The multi-state recurrence, one token after the other: the definition every other backend is held to.

    S_i <- exp(g_t) (I - beta_t k_t k_t^T) S_i       every slot i, whatever its age
    slots move as plan.shift says
    S_0 <- S_0 + beta_t k_t v_t^T                     eq. 15, the open slot
    o_t  = sum_i L[t, i] scale q_t^T S_i              eq. 18, by age i

Without `beta` the transition is `exp(g_t)` alone and the write `k_t v_t^T`. Equation numbers are those of the DLA paper
(arXiv 2606.10650). Letters: N sequences, T time, H heads, K key dim, V value dim, M slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dla_kernels.plan import Plan


def move(slots: Tensor, shift: Tensor, *, collapse: bool) -> Tensor:
    """One step of the age map: `slots` `[N, H, M, ...]` by age, `shift` `[N, H]`; slots that meet are added."""
    capacity = slots.shape[2]
    age = torch.arange(capacity, device=slots.device)
    moves = age <= shift[..., None]
    target = torch.where(moves, shift[..., None] + 1, age) if collapse else age + moves.long()
    target = torch.clamp(target, max=capacity - 1)  # [N, H, M]
    goes_to = torch.nn.functional.one_hot(target.long(), capacity).to(slots.dtype)  # [N, H, from, to]
    return torch.einsum("nhij,nhi...->nhj...", goes_to, slots)


def read_sequences(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slot_weight: Tensor,
    plan: Plan,
    log_decay: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Reads N sequences that continue from `state`.

    Args:
        q, k: `[N, T, H, K]`, expanded to the value heads, q scaled. v: `[N, T, H, V]`. slot_weight: `[N, T, H, M]`.
        plan: shift and gate `[N, T, H]`. log_decay, beta: `[N, T, H]` or None.
        state: `[N, H, M, K, V]` by age.
    Returns:
        o `[N, T, H, V]` in the type of `state`, and the state after the last token.

    A gate in the plan adds a term whose value is zero and whose derivative with respect to gate s is what one more
    shift of all older tokens would change, `sum_{t >= s > j} (L[t, age + 1] - L[t, age]) (q_t^T ... k_j) (do_t . v_j)`
    (README.md, "Gradients"). With `e_t` the sum of the gates up to t, and `E_i` the sum of `e_j` times the write of
    token j over slot i, this term is the read of `e_t S_i - E_i` with weights `L[t, i + 1] - L[t, i]`.
    """
    dtype = state.dtype
    capacity = slot_weight.shape[-1]
    older = torch.clamp(torch.arange(capacity, device=q.device) + 1, max=capacity - 1)
    gated = state * 0.0
    e = torch.zeros_like(state[:, :, 0, 0, 0])  # [N, H]
    outputs = []
    for t in range(q.shape[1]):
        q_t, k_t, v_t = (x[:, t].to(dtype) for x in (q, k, v))
        write_key = k_t
        if log_decay is not None:
            decay = log_decay[:, t].to(dtype).exp()[..., None, None, None]
            state, gated = decay * state, decay * gated
        if beta is not None:
            write_key = beta[:, t, :, None].to(dtype) * k_t
            state = state - torch.einsum("nhk,nhl,nhmlv->nhmkv", write_key, k_t, state)
            gated = gated - torch.einsum("nhk,nhl,nhmlv->nhmkv", write_key, k_t, gated)
        state = move(state, plan.shift[:, t], collapse=plan.collapse)
        write = write_key[..., :, None] * v_t[..., None, :]
        state = torch.cat((state[:, :, :1] + write[:, :, None], state[:, :, 1:]), 2)
        weight = slot_weight[:, t].to(dtype)
        o = torch.einsum("nhm,nhk,nhmkv->nhv", weight, q_t, state)
        if plan.gate is not None:
            gate = plan.gate[:, t].to(dtype)
            e = e + (gate - gate.detach())
            gated = move(gated, plan.shift[:, t], collapse=plan.collapse)
            gated = torch.cat((gated[:, :, :1] + e[..., None, None, None] * write[:, :, None], gated[:, :, 1:]), 2)
            change = e[..., None, None, None] * state - gated
            o = o + torch.einsum("nhm,nhk,nhmkv->nhv", weight[..., older] - weight, q_t, change)
        outputs.append(o)
    return torch.stack(outputs, 1), state
