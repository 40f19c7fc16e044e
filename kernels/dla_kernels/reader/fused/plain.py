# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Plain decay as torch operators: `dla::read_plain` and its backward. torch.compile sees them whole.

Operators cannot return None, so an empty tensor stands for a result that does not exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dla_kernels.operators import operator
from dla_kernels.reader.fused.ages import age_tables
from dla_kernels.reader.fused.chunked import Problem, backward, forward
from dla_kernels.reader.fused.configs import tiles_for
from dla_kernels.reader.fused.decay import cumulative_decay, decay_backward
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.shared_products import shared_products
from dla_kernels.reader.fused.within import Within


def _problem(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor, log_decay: Tensor | None,
    state: Tensor | None, cu_seqlens: Tensor | None, scale: float, collapse: bool, *, backward: bool,
) -> Problem:  # fmt: skip
    batch, time, heads, value_dim = v.shape
    slots = slot_weight.shape[-1]
    tiles = tiles_for(k.shape[-1], value_dim, slots, v.dtype, v.device, delta=False)
    pieces = Pieces.of(batch, time, cu_seqlens, tiles.tile, tiles.long, v.device)
    q, k, v, slot_weight, shift = (x.flatten(0, 1).contiguous() for x in (q, k, v, slot_weight, shift))
    decay = None if log_decay is None else log_decay.flatten(0, 1).contiguous()
    total, until = cumulative_decay(decay, heads, pieces, v.device)
    products = shared_products(q, k, scale, pieces, tiles) if heads > k.shape[1] else None
    return Problem(
        q=q, k=k, u=k, v=v, slot_weight=slot_weight, total=total, until=until, scale=scale,
        within=Within(stored=products, decayed=False), carry=None, removal=None, state=None if state is None else state.contiguous(),
        tables=age_tables(
            shift, pieces, slots, collapse=collapse, cache_given=state is not None, backward=backward
        ),
        pieces=pieces, tiles=tiles,
    )  # fmt: skip


@operator("dla::read_plain")
def read_plain(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor, log_decay: Tensor | None, gate: Tensor | None,
    state: Tensor | None, cu_seqlens: Tensor | None, scale: float, collapse: bool, return_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o `[B, T, H, V]` and the states at the sequences' ends `[N, H, M, K, V]` float32 (empty unless asked).

    q, k, v of one type, shapes as in `multi_state_attention`; shift `[B, T, H]`; gate only gets a gradient; state `[N,
    H, M, K, V]` float32 by age.
    """
    problem = _problem(q, k, v, slot_weight, shift, log_decay, state, cu_seqlens, scale, collapse, backward=False)
    o, final = forward(problem, return_state=return_state)
    return o.view(v.shape), v.new_empty(0, dtype=torch.float32) if final is None else final


@read_plain.register_fake
def _(q, k, v, slot_weight, shift, log_decay, gate, state, cu_seqlens, scale, collapse, return_state):
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, v.shape[2], slot_weight.shape[3], k.shape[3], v.shape[3]) if return_state else (0,)
    return v.new_empty(v.shape), v.new_empty(shape, dtype=torch.float32)


@operator("dla::read_plain_backward", is_gradient=True)
def read_plain_backward(
    do: Tensor, dfinal: Tensor | None, q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor,
    log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, scale: float, collapse: bool, gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, dslot_weight, dlog_decay, dgate, dstate."""
    problem = _problem(q, k, v, slot_weight, shift, log_decay, state, cu_seqlens, scale, collapse, backward=True)
    do = do.to(v.dtype).flatten(0, 1).contiguous()
    found = backward(problem, do, None if dfinal is None else dfinal.float().contiguous(), gate=gate)
    dlog_decay, dgate = v.new_empty(0), v.new_empty(0)  # not one tensor: outputs must not share memory
    if log_decay is not None:
        dlog_decay = decay_backward(
            found.qdq, found.kdk, found.ends, found.dcarry, problem.pieces, has_state=state is not None
        )
        dlog_decay = dlog_decay.view(log_decay.shape).to(log_decay.dtype)
    if found.dgate is not None:
        dgate = found.dgate.view(shift.shape)
    return (
        found.dq.view(q.shape),
        found.dk.view(k.shape),
        found.dv.view(v.shape),
        found.dslot_weight.view(slot_weight.shape),
        dlog_decay,
        dgate,
        v.new_empty(0) if found.dstate is None else found.dstate,
    )


@read_plain_backward.register_fake
def _(do, dfinal, q, k, v, slot_weight, shift, log_decay, state, cu_seqlens, scale, collapse, gate):
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        slot_weight.new_empty(slot_weight.shape),
        v.new_empty(0) if log_decay is None else log_decay.new_empty(log_decay.shape),
        v.new_empty(shift.shape, dtype=torch.float32) if gate else v.new_empty(0),
        v.new_empty(0) if state is None else state.new_empty(state.shape),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, collapse, return_state = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.options = scale, collapse, return_state


def _backward(ctx: Any, do: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, slot_weight, shift, log_decay, gate, state, cu_seqlens = ctx.saved_tensors
    scale, collapse, return_state = ctx.options
    if do is None:
        do = torch.zeros_like(v)
    dq, dk, dv, dslot_weight, dlog_decay, dgate, dstate = read_plain_backward(
        do, dfinal if return_state else None, q, k, v, slot_weight, shift, log_decay, state, cu_seqlens, scale, collapse,
        gate is not None,
    )  # fmt: skip
    return (
        dq, dk, dv, dslot_weight, None, None if log_decay is None else dlog_decay, None if gate is None else dgate,
        None if state is None else dstate, None, None, None, None,
    )  # fmt: skip


read_plain.register_autograd(_backward, setup_context=_setup)
