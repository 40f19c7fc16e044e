# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The gated delta rule as torch operators: `dla::read_delta` and its backward.

Only the chunk algebra is specific to it (delta_chunks.py); that involves no states. Reading and carrying M states, the
expensive part, shares every kernel with plain decay but the three of states_delta.py. Only the inputs are kept for the
backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dla_kernels.operators import operator
from dla_kernels.reader.fused.ages import age_tables
from dla_kernels.reader.fused.chunked import Problem, backward, forward
from dla_kernels.reader.fused.configs import Tiles, tiles_for
from dla_kernels.reader.fused.delta_chunks import DeltaChunks, chunk_algebra, chunk_algebra_backward
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.within import Within


def _cut(k: Tensor, v: Tensor, slot_weight: Tensor, cu_seqlens: Tensor | None) -> tuple[Pieces, Tiles]:
    tiles = tiles_for(k.shape[-1], v.shape[-1], slot_weight.shape[-1], v.dtype, v.device, delta=True)
    return Pieces.of(*v.shape[:2], cu_seqlens, tiles.tile, tiles.long, v.device), tiles


def _by_token(*tensors: Tensor | None) -> list[Any]:
    """`[B, T, ...]` -> `[tokens, ...]`."""
    return [None if x is None else x.flatten(0, 1).contiguous() for x in tensors]


def _problem(
    chunks: DeltaChunks, v: Tensor, slot_weight: Tensor, shift: Tensor, state: Tensor | None, pieces: Pieces, tiles: Tiles,
    collapse: bool, *, backward: bool,
) -> Problem:  # fmt: skip
    v, slot_weight, shift = _by_token(v, slot_weight, shift)
    total = torch.zeros(v.shape[1], pieces.tokens, dtype=torch.float32, device=v.device)
    return Problem(
        q=chunks.read, k=chunks.write, u=chunks.write, v=v, slot_weight=slot_weight, total=total, until=total, scale=1.0,
        within=Within(stored=chunks.within, decayed=True), carry=chunks.carry, removal=chunks.removal,
        state=None if state is None else state.contiguous(),
        tables=age_tables(
            shift, pieces, slot_weight.shape[-1], collapse=collapse, cache_given=state is not None, backward=backward
        ),
        pieces=pieces, tiles=tiles,
    )  # fmt: skip


@operator("dla::read_delta")
def read_delta(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor, log_decay: Tensor | None, beta: Tensor,
    gate: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, scale: float, collapse: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `plain.read_plain`, with beta `[B, T, H]`."""
    pieces, tiles = _cut(k, v, slot_weight, cu_seqlens)
    made = chunk_algebra(*_by_token(q, k, log_decay, beta), scale, pieces, tiles)
    problem = _problem(made, v, slot_weight, shift, state, pieces, tiles, collapse, backward=False)
    o, final = forward(problem, return_state=return_state)
    return o.view(v.shape), v.new_empty(0, dtype=torch.float32) if final is None else final


@read_delta.register_fake
def _(q, k, v, slot_weight, shift, log_decay, beta, gate, state, cu_seqlens, scale, collapse, return_state):
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, v.shape[2], slot_weight.shape[3], k.shape[3], v.shape[3]) if return_state else (0,)
    return v.new_empty(v.shape), v.new_empty(shape, dtype=torch.float32)


@operator("dla::read_delta_backward", is_gradient=True)
def read_delta_backward(
    do: Tensor, dfinal: Tensor | None, q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor,
    log_decay: Tensor | None, beta: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, scale: float, collapse: bool,
    gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, dslot_weight, dlog_decay, dbeta, dgate, dstate."""
    pieces, tiles = _cut(k, v, slot_weight, cu_seqlens)
    given = (*_by_token(q, k, log_decay, beta), scale, pieces, tiles)
    problem = _problem(
        chunk_algebra(*given), v, slot_weight, shift, state, pieces, tiles, collapse, backward=True
    )  # fmt: skip
    do = do.to(v.dtype).flatten(0, 1).contiguous()
    found = backward(problem, do, None if dfinal is None else dfinal.float().contiguous(), gate=gate)
    del problem  # memory
    assert found.dwithin is not None
    assert found.dremoval is not None
    dgate = v.new_empty(0)
    if found.dgate is not None:
        dgate = found.dgate.view(shift.shape)
    dchunks = DeltaChunks(
        within=found.dwithin, read=found.dq, write=found.dk, removal=found.dremoval, carry=found.dcarry
    )
    dv, dslot_weight, dstate = found.dv, found.dslot_weight, found.dstate
    del found
    dq, dk, dlog_decay, dbeta = chunk_algebra_backward(dchunks, *given)
    return (
        dq.view(q.shape),
        dk.view(k.shape),
        dv.view(v.shape),
        dslot_weight.view(slot_weight.shape),
        v.new_empty(0) if log_decay is None else dlog_decay.view(log_decay.shape).to(log_decay.dtype),
        dbeta.view(beta.shape).to(beta.dtype),
        dgate,
        v.new_empty(0) if dstate is None else dstate,
    )


@read_delta_backward.register_fake
def _(do, dfinal, q, k, v, slot_weight, shift, log_decay, beta, state, cu_seqlens, scale, collapse, gate):
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        slot_weight.new_empty(slot_weight.shape),
        v.new_empty(0) if log_decay is None else log_decay.new_empty(log_decay.shape),
        beta.new_empty(beta.shape),
        v.new_empty(shift.shape, dtype=torch.float32) if gate else v.new_empty(0),
        v.new_empty(0) if state is None else state.new_empty(state.shape),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, collapse, return_state = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.options = scale, collapse, return_state


def _backward(ctx: Any, do: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, slot_weight, shift, log_decay, beta, gate, state, cu_seqlens = ctx.saved_tensors
    scale, collapse, return_state = ctx.options
    if do is None:
        do = torch.zeros_like(v)
    dq, dk, dv, dslot_weight, dlog_decay, dbeta, dgate, dstate = read_delta_backward(
        do, dfinal if return_state else None, q, k, v, slot_weight, shift, log_decay, beta, state, cu_seqlens, scale,
        collapse, gate is not None,
    )  # fmt: skip
    return (
        dq, dk, dv, dslot_weight, None, None if log_decay is None else dlog_decay, dbeta,
        None if gate is None else dgate, None if state is None else dstate, None, None, None, None,
    )  # fmt: skip


read_delta.register_autograd(_backward, setup_context=_setup)
