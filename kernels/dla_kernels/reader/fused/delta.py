# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""The gated delta rule as a torch operator, `dla::read_delta`, after its chunk algebra.

The algebra (delta_chunks.py; no state in sight) solves tiles by torch, composes them by an operator of its own, and is made
again in the backward; what costs, reading and carrying M states, is this operator, which shares every kernel with plain
decay except the three of states_delta.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dla_kernels.reader.fused.ages import age_tables
from dla_kernels.reader.fused.chunked import Problem, backward, forward
from dla_kernels.reader.fused.configs import tiles_for
from dla_kernels.reader.fused.delta_chunks import chunk_algebra
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.fused.sums import sums_to_end


def read_delta(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, shift: Tensor, log_decay: Tensor | None, beta: Tensor,
    gate: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, scale: float, collapse: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `plain.read_plain`, with beta `[B, T, H]`."""
    batch, time, heads, value_dim = v.shape
    tiles = tiles_for(k.shape[-1], value_dim, slot_weight.shape[-1], v.dtype, v.device, delta=True)
    pieces = Pieces.of(batch, time, cu_seqlens, tiles.tile, tiles.long, v.device)
    made = checkpoint(chunk_algebra, q, k, log_decay, beta, v.dtype, scale, heads, pieces, use_reentrant=False)
    assert made is not None
    return read_chunks(*made, v, slot_weight, shift, gate, state, cu_seqlens, collapse, return_state)


def _problem(
    within: Tensor, read: Tensor, write: Tensor, removal: Tensor, carry: Tensor, v: Tensor, slot_weight: Tensor,
    shift: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, collapse: bool,
) -> Problem:  # fmt: skip
    batch, time, heads, value_dim = v.shape
    slots = slot_weight.shape[-1]
    tiles = tiles_for(read.shape[-1], value_dim, slots, v.dtype, v.device, delta=True)
    pieces = Pieces.of(batch, time, cu_seqlens, tiles.tile, tiles.long, v.device)
    v, slot_weight, shift = (x.flatten(0, 1).contiguous() for x in (v, slot_weight, shift))
    write = write.contiguous()
    return Problem(
        q=read.contiguous(), k=write, u=write, v=v, slot_weight=slot_weight,
        total=torch.zeros(heads, pieces.tokens, dtype=torch.float32, device=v.device), scale=1.0,
        within=within.contiguous(), carry=carry.contiguous(), removal=removal.contiguous(),
        state=None if state is None else state.contiguous(),
        tables=age_tables(shift, pieces, slots, collapse=collapse, cache_given=state is not None),
        pieces=pieces, tiles=tiles,
    )  # fmt: skip


@torch.library.custom_op("dla::read_delta", mutates_args=())
def read_chunks(
    within: Tensor, read: Tensor, write: Tensor, removal: Tensor, carry: Tensor, v: Tensor, slot_weight: Tensor,
    shift: Tensor, gate: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None, collapse: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o `[B, T, H, V]` and the states at the ends (empty unless asked) from what `chunk_algebra` made."""
    problem = _problem(within, read, write, removal, carry, v, slot_weight, shift, state, cu_seqlens, collapse)
    o, final = forward(problem, return_state=return_state)
    return o.view(v.shape), v.new_empty(0, dtype=torch.float32) if final is None else final


@read_chunks.register_fake
def _(within, read, write, removal, carry, v, slot_weight, shift, gate, state, cu_seqlens, collapse, return_state):
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, v.shape[2], slot_weight.shape[3], read.shape[2], v.shape[3]) if return_state else (0,)
    return v.new_empty(v.shape), v.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("dla::read_delta_backward", mutates_args=())
def read_chunks_backward(
    do: Tensor, dfinal: Tensor | None, within: Tensor, read: Tensor, write: Tensor, removal: Tensor, carry: Tensor,
    v: Tensor, slot_weight: Tensor, shift: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, collapse: bool,
    gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dwithin, dread, dwrite, dremoval, dv, dslot_weight, dgate, dstate."""
    problem = _problem(within, read, write, removal, carry, v, slot_weight, shift, state, cu_seqlens, collapse)
    do = do.to(v.dtype).flatten(0, 1).contiguous()
    found = backward(problem, do, None if dfinal is None else dfinal.float().contiguous(), gate=gate)
    assert found.dwithin is not None
    assert found.dremoval is not None
    dgate = v.new_empty(0)
    if found.rows is not None and found.columns is not None:
        dgate = sums_to_end((found.rows - found.columns).view(shift.shape), cu_seqlens)
    return (
        found.dwithin, found.dq, found.dk, found.dremoval.to(removal.dtype), found.dv.view(v.shape),
        found.dslot_weight.view(slot_weight.shape).to(slot_weight.dtype), dgate,
        v.new_empty(0) if found.dstate is None else found.dstate,
    )  # fmt: skip


@read_chunks_backward.register_fake
def _(do, dfinal, within, read, write, removal, carry, v, slot_weight, shift, state, cu_seqlens, collapse, gate):
    return (
        within.new_empty(within.shape),
        read.new_empty(read.shape),
        write.new_empty(write.shape),
        removal.new_empty(removal.shape),
        v.new_empty(v.shape),
        slot_weight.new_empty(slot_weight.shape),
        v.new_empty(shift.shape, dtype=torch.float32) if gate else v.new_empty(0),
        v.new_empty(0) if state is None else state.new_empty(state.shape),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, collapse, return_state = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.options = collapse, return_state


def _backward(ctx: Any, do: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    within, read, write, removal, carry, v, slot_weight, shift, gate, state, cu_seqlens = ctx.saved_tensors
    collapse, return_state = ctx.options
    if do is None:
        do = torch.zeros_like(v)
    dwithin, dread, dwrite, dremoval, dv, dslot_weight, dgate, dstate = read_chunks_backward(
        do, dfinal if return_state else None, within, read, write, removal, carry, v, slot_weight, shift, state,
        cu_seqlens, collapse, gate is not None,
    )  # fmt: skip
    return (
        dwithin, dread, dwrite, dremoval, None, dv, dslot_weight, None, None if gate is None else dgate,
        None if state is None else dstate, None, None, None,
    )  # fmt: skip


read_chunks.register_autograd(_backward, setup_context=_setup)
